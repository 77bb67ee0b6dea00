"""The op on a card, for which the other files' interpreter and compiler stand in where there is none.
Every kernel, both directions.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from spatialweave.kernels import Segments, Source, segment_attention, use_backend
from spatialweave.kernels.bench import verify
from spatialweave.kernels.segment_attention import launch
from spatialweave.kernels.segment_attention.cases import CASES, EXTREME, LONG, NEVER, coupled
from spatialweave.kernels.segment_attention.reference import segment_attention_reference
from spatialweave.kernels.segment_attention.segments import full_weight
from spatialweave.kernels.testing import GuardedMemory

DEVICE = torch.device("cuda")
HALF = [torch.float16, torch.bfloat16]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels run on a CUDA device"),
]


@pytest.fixture(autouse=True)
def able():
    """A card that the kernels refuse has nothing to test here; one on which they fail is a failure."""
    reason = launch.machine_reason(DEVICE)
    if reason is not None:
        pytest.skip(reason)
    before = set(launch.TRUST.failed)
    yield
    assert set(launch.TRUST.failed) == before


def error(got, want):
    return float(
        (got.double().cpu() - want.double().cpu()).norm() / want.double().norm().clamp_min(1e-30).cpu()
    )


def partner(row):
    return row ^ 1


def reference(q, k, v, segments, weight, scale):
    """In float64, for one segment of queries, some at a time: 4,097 of them would need gigabytes at once."""
    exact, parts = [tensor.double() for tensor in (q, k, v)], []
    for some in exact[0].split(1024, 2):
        few = Segments((some.shape[2],), segments.sources)
        parts.append(segment_attention_reference(some, *exact[1:], few, weight.double(), scale=scale))
    return [torch.cat(each, 2) for each in zip(*parts)]


@pytest.mark.parametrize("case", CASES + EXTREME, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_case_in_both_directions(dtype, case):
    """By the kernel and by the composition."""
    assert verify.verify(DEVICE, dtype, (case,)) == 2 * (1 if case in EXTREME else 5)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("width", [40, 64, 72, 80, 96, 128, 160])
@pytest.mark.parametrize("length", [1, 15, 63, 64, 65, 127, 1000, 1023, 4097])
def test_no_worse_than_the_composition(length, width, dtype):
    """Within 1.2 times its error; NaN in every buffer and marks beside it; twice the same bits;
    weights in every form.
    """
    case = coupled(
        "any", length, partner, (0.4, 1.0, 0.0, 1e-6), width=width, heads=3 if length < 1000 else 1,
        layout="packed",
    )
    q, k, v = case.tensors(torch.Generator().manual_seed(length), dtype, DEVICE)
    weight = full_weight(case.log_weight(), q, case.segments)
    want, want_lse = reference(q, k, v, case.segments, weight, 0.2)
    given = dict(segments=case.segments, log_weight=weight, scale=0.2, return_lse=True)
    with use_backend("composition"):
        theirs, _ = segment_attention(q, k, v, **given)
    with use_backend("triton"):
        segment_attention(q, k, v, **given)  # the self-check takes buffers of its own
        with GuardedMemory() as memory:
            ours, lse = segment_attention(q, k, v, **given)
        again, _ = segment_attention(q, k, v, **given)
    assert error(ours, want) <= 1.2 * error(theirs, want) + verify.LIMITS[dtype] / 20
    assert error(lse, want_lse) < 1e-5 and torch.equal(ours, again) and memory.is_intact()


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_long_sequences_in_both_directions(case, dtype):
    with use_backend("triton"):
        assert verify.verify_case(case, DEVICE, dtype, case.name, seed=len(case.name)) == 5


@pytest.mark.parametrize("on", ["host", "device"])
def test_identities(on):
    made = (
        torch.randn(3, 4, 200, 3, 64, generator=torch.Generator().manual_seed(0))
        .to(DEVICE, torch.bfloat16)
        .transpose(2, 3)
    )
    (q, k, v), pair = made, Segments.coupled(200, (1, 0, 3, 2))

    def run(q, k, v, segments, weight):
        weight = torch.tensor(weight, device=DEVICE if on == "device" else "cpu")
        with use_backend("triton"):
            return segment_attention(q, k, v, segments, weight)

    alone = run(q, k, v, Segments((200,), (Source(0, 200),)), [[0.0]])
    assert torch.equal(run(q, k, v, pair, [[0.0, NEVER]]), alone), "weight 0 is plain attention, bit for bit"
    assert (
        error(alone, F.scaled_dot_product_attention(q.double(), k.double(), v.double()))
        < verify.LIMITS[q.dtype]
    )
    other = [1, 0, 3, 2]
    beside = [torch.cat([tensor, tensor[other]], 2) for tensor in (k, v)]
    whole = F.scaled_dot_product_attention(q.double(), *(tensor.double() for tensor in beside))
    assert error(run(q, k, v, pair, [[0.0, 0.0]]), whole) < verify.LIMITS[q.dtype], (
        "weight 1 is concatenation"
    )
    twins = [tensor[:1].expand(4, -1, -1, -1).contiguous() for tensor in (k, v)]
    plain = F.scaled_dot_product_attention(q.double(), *(tensor.double() for tensor in twins))
    for weight in (1e-6, 0.4, 1.0, 20.0):
        assert error(run(q, *twins, pair, [[0.0, math.log(weight)]]), plain) < verify.LIMITS[q.dtype], (
            "equal streams"
        )


def test_a_captured_graph_follows_the_weights_on_the_device():
    case = coupled("graph", 128, partner, (0.4, 0.4), width=64)
    q, k, v = case.tensors(torch.Generator().manual_seed(0), torch.bfloat16, DEVICE)
    weight = case.log_weight().to(DEVICE)
    call = lambda: segment_attention(q, k, v, case.segments, weight)  # noqa: E731
    with use_backend("triton"):
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()
        for log_weight in (-1.0, NEVER, 0.0):
            weight[..., 1] = log_weight
            graph.replay()
            assert torch.equal(out, call())


def test_inductor_compiles_it_into_one_graph_with_gradients():
    segments = Segments.joint((40, 88))
    q, k, v = (
        torch.randn(2, 3, 128, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    weight = torch.tensor([[0.0, -0.5], [NEVER, 0.3]], device=DEVICE, requires_grad=True)

    def call(q, k, v, weight):
        return segment_attention(q * 2, k, v, segments, weight).sin()

    with use_backend("triton"):
        ours = torch.autograd.grad(
            torch.compile(call, fullgraph=True)(q, k, v, weight).float().sum(), (q, k, v, weight)
        )
        want = torch.autograd.grad(call(q, k, v, weight).float().sum(), (q, k, v, weight))
    assert all(error(one, other) < 0.02 for one, other in zip(ours, want))
