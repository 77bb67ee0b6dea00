"""The public ops: layouts, gradients on every path, registration with torch, torch.compile, refusals."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from spatialweave.kernels import (
    Inner,
    Segments,
    Source,
    cross_domain_attention,
    segment_attention,
    use_backend,
)
from spatialweave.kernels.segment_attention import backward, composition, op
from spatialweave.kernels.segment_attention.cases import CASES, EXTREME, NEVER
from spatialweave.kernels.segment_attention.plan import make_plan
from spatialweave.kernels.segment_attention.reference import segment_attention_reference
from spatialweave.kernels.segment_attention.segments import full_weight
from spatialweave.kernels.testing import assert_close


def seeded(case, dtype=torch.float64):
    return case.tensors(torch.Generator().manual_seed(len(case.name)), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES + EXTREME, ids=lambda case: case.name)
def test_gradients_are_those_of_the_reference(case, dtype, monkeypatch):
    """Through output and log-sum-exp, in several blocks."""
    monkeypatch.setattr(backward, "MOST_SCORES", 2000)
    q, k, v = seeded(case, dtype)
    weight = case.log_weight(torch.float64 if dtype == torch.float64 else torch.float32)
    generator = torch.Generator().manual_seed(3)
    grad, grad_lse = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in (q.shape, q.shape[:3])
    )
    ours = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v, weight)]
    out, lse = segment_attention(*ours[:3], case.segments, ours[3], scale=0.2, return_lse=True)
    seen = lse > -math.inf
    got = torch.autograd.grad((out * grad).sum() + (lse * grad_lse)[seen].sum(), ours)
    theirs = [tensor.detach().double().requires_grad_() for tensor in (q, k, v, weight)]
    full = full_weight(theirs[3], theirs[0], case.segments)
    want_out, want_lse = segment_attention_reference(*theirs[:3], case.segments, full, scale=0.2)
    want = torch.autograd.grad(
        (want_out * grad.double()).sum() + (want_lse * grad_lse.double())[seen].sum(), theirs
    )
    for one, other, tensor in zip(got, want, (q, k, v, weight)):
        assert one.dtype == tensor.dtype
        limit = {torch.float64: 1e-12, torch.float32: 1e-4 if case in EXTREME else 1e-5}.get(dtype, 0.02)
        assert float((one.double() - other).norm()) <= limit * float(other.norm() + 1)


@pytest.mark.parametrize("kind", ["plain", "heads"])
def test_layouts(kind):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 9, 3 * 8, generator=generator) for _ in range(3))
    parts = [tensor.unflatten(2, (3, 8)).transpose(1, 2) for tensor in (q, k, v)]
    want = F.scaled_dot_product_attention(
        parts[0], torch.cat([parts[1], parts[1].flip(0)], 2), torch.cat([parts[2], parts[2].flip(0)], 2)
    )
    if kind == "heads":
        out = cross_domain_attention(q, k, v, 1.0, heads=3)
        assert out.shape == (2, 9, 24) and out.is_contiguous()
        assert_close(out, want.transpose(1, 2).flatten(2))
    else:
        assert_close(cross_domain_attention(*parts, [1.0, 1.0]), want)


@pytest.mark.parametrize("partner", ["pairs", "halves", [3, 0, 1, 2], torch.tensor([3, 0, 1, 2])], ids=str)
@pytest.mark.parametrize("form", ["number", "rows", "heads"])
def test_cross_domain_attention_is_equation_4(partner, form):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 2, 7, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    weight = {
        "number": 0.3, "rows": [0.0, 1.0, 0.4, 2.0], "heads": torch.rand(4, 2, generator=generator)
    }[form]
    other = {"pairs": [1, 0, 3, 2], "halves": [2, 3, 0, 1]}.get(
        partner if isinstance(partner, str) else "", [3, 0, 1, 2]
    )
    own = (q @ k.transpose(2, 3) * 8**-0.5).exp()
    wide = torch.as_tensor(weight, dtype=torch.float32).double()
    wide = wide.reshape(*wide.shape, *(1,) * (4 - wide.dim()))
    across = wide * (q @ k[other].transpose(2, 3) * 8**-0.5).exp()
    want = (own @ v + across @ v[other]) / (own.sum(-1, keepdim=True) + across.sum(-1, keepdim=True))
    assert float((cross_domain_attention(q, k, v, weight, partner=partner) - want).abs().max()) < 1e-6


def test_two_runs_are_bitwise_equal():
    q, k, v = (tensor.requires_grad_() for tensor in seeded(CASES[0], torch.float32))
    runs = []
    for _ in range(2):
        out = segment_attention(q, k, v, CASES[0].segments, CASES[0].log_weight())
        runs.append([out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))])
    assert all(torch.equal(one, other) for one, other in zip(*runs))


@pytest.mark.parametrize("name", ["composition", "reference"])
def test_backends_agree(name):
    case = next(case for case in CASES if case.name == "joint-three-streams")
    q, k, v = seeded(case)
    with use_backend(name):
        out, lse = segment_attention(q, k, v, case.segments, case.log_weight(), return_lse=True)
    want, want_lse = segment_attention_reference(
        q, k, v, case.segments, full_weight(case.log_weight(), q, case.segments), scale=1 / 8
    )
    assert_close(out, want)
    assert_close(lse, want_lse)


def small(grad=True):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 17, 16, generator=generator, requires_grad=grad) for _ in range(3)]


@pytest.mark.parametrize("need_lse", [True, False])
def test_opcheck(need_lse):
    weight = torch.zeros(1, 1, 2, 2, requires_grad=need_lse)
    given = (*small(need_lse), weight, *op._flatten(Segments.joint((7, 10)), 2), 0.2, need_lse)
    torch.library.opcheck(torch.ops.spatialweave.segment_attention.default, given)
    if need_lse:
        out, lse = torch.ops.spatialweave.segment_attention(
            *(t.detach() if isinstance(t, torch.Tensor) else t for t in given)
        )
        more = (out, lse, *(tensor.detach() for tensor in given[:4]), out, lse, *given[4:-1], True, "")
        torch.library.opcheck(torch.ops.spatialweave.segment_attention_backward.default, more)


def test_gradients_lie_in_memory_as_compiled_graphs_are_told():
    """As (B, N, H, D), whichever backend made them: inductor checks strides at run time, opcheck does not ask
    for a layout.
    """
    weight = torch.zeros(1, 1, 2, 2)
    q, k, v = small(False)
    given = (q, k, v, weight, *op._flatten(Segments.joint((7, 10)), 2), 0.2, True)
    out, lse = torch.ops.spatialweave.segment_attention(*given)
    made = torch.ops.spatialweave.segment_attention_backward(
        out, lse, q, k, v, weight, out, lse, *given[4:-1], True, ""
    )
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in (out, lse, q, k, v, weight, out, lse)]
        told = torch.ops.spatialweave.segment_attention_backward(*fake, *given[4:-1], True, "")
    assert [one.stride() for one in made] == [one.stride() for one in told]
    assert all(one.transpose(1, 2).is_contiguous() for one in made[:3])


SIGNATURES = """
spatialweave::segment_attention(Tensor q, Tensor k, Tensor v, Tensor log_weight,
    int[] queries, int[] starts, int[] lengths, int[] rows, float scale, bool need_lse) -> (Tensor, Tensor)
spatialweave::segment_attention_backward(Tensor grad, Tensor grad_lse, Tensor q, Tensor k, Tensor v,
    Tensor log_weight, Tensor out, Tensor lse, int[] queries, int[] starts, int[] lengths, int[] rows,
    float scale, bool need_weight, str forced) -> (Tensor, Tensor, Tensor, Tensor)
"""


def test_a_name_keeps_its_signature():
    """What inductor compiled stays on a user's disk, and calls our operators by name:
    one whose signature changes takes a new name.
    """
    operators = (torch.ops.spatialweave.segment_attention, torch.ops.spatialweave.segment_attention_backward)
    assert " ".join(str(each.default._schema) for each in operators).split() == SIGNATURES.split()


def test_compiles_into_one_graph_with_gradients():
    segments, weight = Segments.joint((7, 10)), torch.tensor([[0.0, -0.5], [NEVER, 0.3]], requires_grad=True)

    def call(q, k, v, weight):
        return segment_attention(q * 2, k, v, segments, weight, heads=None).sin()

    given = [*small(), weight]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for fn in (call, compiled):
        fn(*given).sum().backward()
    want = torch.autograd.grad(call(*given).sum(), given)
    assert all(torch.allclose(tensor.grad, 2 * one, atol=1e-5) for tensor, one in zip(given, want))
    q, k, v = small(False)
    cross = torch.compile(
        lambda q, k, v: cross_domain_attention(q, k, v, [0.3, 1.0]), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(cross(q, k, v), cross_domain_attention(q, k, v, [0.3, 1.0]))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("cl") is None,
    reason="torch's inductor needs a C++ compiler on a CPU",
)
def test_inductor_compiles_it_into_one_graph_with_gradients():
    segments, weight = Segments.joint((7, 10)), torch.tensor([[0.0, -0.5], [NEVER, 0.3]], requires_grad=True)

    def call(q, k, v, weight):
        return segment_attention(q * 2, k, v, segments, weight).sin()

    given = [*small(), weight]
    torch.compile(call, fullgraph=True)(*given).sum().backward()
    want = torch.autograd.grad(call(*given).sum(), given)
    assert all(torch.allclose(tensor.grad, one, atol=1e-5) for tensor, one in zip(given, want))


def plain(q, k, v, *, scale):
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def test_the_operator_alone_refuses_to_train_without_a_log_sum_exp():
    shape = op._flatten(Segments.joint((7, 10)), 2)
    out, _ = torch.ops.spatialweave.segment_attention(*small(), torch.zeros(1, 1, 2, 2), *shape, 0.2, False)
    with pytest.raises(RuntimeError, match="call segment_attention, not the operator"):
        out.sum().backward()


X = small(False)
PAIR = Segments.coupled(17, (1, 0))
REFUSED = {
    "Expected .b, n, h . d. with heads=5, got .2, 17, 48.": lambda: segment_attention(
        *(torch.zeros(2, 17, 48),) * 3, PAIR, heads=5
    ),
    "with heads=3, got .2, 3, 17, 16.": lambda: segment_attention(*X, PAIR, heads=3),
    "got NaN or .inf. Pass the logarithm of weights that are finite and not negative": lambda: (
        cross_domain_attention(*X, -0.5)
    ),
    "or -inf for masked sources, got NaN": lambda: segment_attention(
        *X, PAIR, torch.tensor([[0.0, math.nan]])
    ),
    "Expected finite log weights": lambda: segment_attention(*X, PAIR, [[0.0, math.nan]], inner=Inner(plain)),
    "Expected a weight without requires_grad": lambda: cross_domain_attention(
        *X, torch.ones(2, requires_grad=True)
    ),
    "Expected a weight of shape .., .2,. or .2, heads., got .3,.": lambda: cross_domain_attention(
        *X, [1.0, 0.5, 0.1]
    ),
    "Expected tensors without requires_grad beside an inner attention": lambda: segment_attention(
        *small(), PAIR, inner=Inner(plain)
    ),
    "q on cpu, k on meta": lambda: segment_attention(X[0], X[1].to("meta"), X[2].to("meta"), PAIR),
    "Source 0: expected an end of at most 17, the number of keys, got 40": lambda: segment_attention(
        *X, Segments((17,), (Source(0, 40),))
    ),
    "Expected q of shape .b, h, n, d., got .2, 16.": lambda: cross_domain_attention(
        *(X[0][0, 0][:2],) * 3, 0.5
    ),
    "a mask of single tokens is not supported": lambda: segment_attention(
        *X, PAIR, torch.zeros(2, 3, 17, 34)
    ),
    "positive finite scale, .*, got 0": lambda: segment_attention(*X, PAIR, scale=0),
}  # fmt: skip


@pytest.mark.parametrize("given, sentence", [
    (
        dict(log_weight=torch.ones(17, 34, dtype=torch.bool)),
        "log weights, got torch.bool. .* a mask of single tokens",
    ),
    (dict(mask=torch.zeros(17, 34)), "mask"),
])  # fmt: skip
def test_masks_are_refused(given, sentence):
    with pytest.raises(TypeError, match=sentence):
        segment_attention(*X, PAIR, **given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_weight_in_any_precision_has_an_exact_logarithm(dtype):
    """log 0.3 in bfloat16 would be off by some parts in a thousand."""
    weight = torch.tensor([0.3, 0.7]).to(dtype)
    assert torch.equal(cross_domain_attention(*X, weight), cross_domain_attention(*X, weight.float()))


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(sentence):
    with pytest.raises(ValueError, match=sentence):
        REFUSED[sentence]()


def test_nan_in_device_weights_is_nan_out(monkeypatch):
    """Values on a device are not waited for: what cannot be refused must show."""
    monkeypatch.setattr(op, "check_values", lambda weight: None)
    monkeypatch.setattr(
        composition, "plan_of", lambda q, k, v, segments, weight: make_plan(segments, 2, 17, None, True, True)
    )
    assert bool(segment_attention(*X, PAIR, [[0.0, math.nan]]).isnan().all())
