"""The coupled attention against a float64 softmax with a bias row, and its limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from spatialweave.models.intrinsic_ldm.attention import Coupling, KVCache, attend_domains
from spatialweave.models.intrinsic_ldm.network import attend_plain
from spatialweave.models.intrinsic_ldm.rows import Rows

HEADS = 2


def rows_of(batch=2, chunks=2, tokens=5, dtype=torch.float64):
    rows = Rows(tuple(f"prompt {index}" for index in range(chunks)), batch)
    generator = torch.Generator().manual_seed(0)
    return rows, [
        torch.randn(rows.count, tokens, HEADS * 8, generator=generator, dtype=dtype) for _ in range(3)
    ]


def truth(q, k, v, rows, weight):
    """Equation 4 written out: for every row its own and its partner's keys, image first,
    with the bias row.
    """
    out = torch.zeros_like(q, dtype=torch.float64)
    for chunk in range(len(rows.chunks)):
        for b in range(rows.batch):
            image, maps = (chunk * 2 * rows.batch + stream * rows.batch + b for stream in (0, 1))
            keys, values = (torch.cat([tensor[image], tensor[maps]]).double() for tensor in (k, v))
            half = len(keys) // 2
            for row, w in ((image, weight), (maps, 1.0)):
                bias = torch.tensor(
                    [0.0] * half + [math.log(w) if w else -math.inf] * half, dtype=torch.float64
                )
                for head in range(HEADS):
                    part = slice(head * 8, head * 8 + 8)
                    scores = q[row, :, part].double() @ keys[:, part].T / math.sqrt(8) + bias
                    out[row, :, part] = scores.softmax(dim=-1) @ values[:, part]
    return out


@pytest.mark.parametrize("weight", [0.0, 1e-3, 0.37, 1.0, 2.5])
@pytest.mark.parametrize("batch, chunks", [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_attention_is_the_softmax_with_the_bias_row(weight, batch, chunks):
    rows, qkv = rows_of(batch, chunks)
    assert (attend_domains(*qkv, rows, weight, heads=HEADS) - truth(*qkv, rows, weight)).abs().max() < 1e-6
    single = [tensor.float() for tensor in qkv]
    assert (
        attend_domains(*single, rows, weight, heads=HEADS) - truth(*single, rows, weight)
    ).abs().max() < 1e-5


def test_weight_one_is_plain_concatenation():
    rows, (q, k, v) = rows_of()
    both = [
        torch.stack([rows.select(t, "image"), rows.select(t, "intrinsic")], dim=2).flatten(2, 3)
        for t in (k, v)
    ]
    keys, values = (t.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(0, 2) for t in both)
    want = attend_plain(q, keys, values, HEADS)
    assert (attend_domains(q, k, v, rows, 1.0, heads=HEADS) - want).abs().max() < 1e-12


def test_partners_stay_within_their_prompt():
    rows = Rows(("cond", "uncond", "area"), 2)
    assert rows.partners() == [2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9]


def test_image_and_maps_apart_are_the_coupled_call_with_weight_zero():
    """In other chunks of calls than the images came in: keys and values are found by their prompt."""
    rows, (q, k, v) = rows_of(batch=2, chunks=3, dtype=torch.float32)
    want = attend_domains(q, k, v, rows, 0.0, heads=HEADS)
    coupling, cache = Coupling(), KVCache()

    def call(chunks, stream):
        index = [rows.chunks.index(chunk) for chunk in chunks]
        parts = [rows.select(tensor, stream)[index].flatten(0, 1) for tensor in (q, k, v)]
        with coupling.call(Rows(tuple(chunks), rows.batch, (stream,)), cache=cache):
            out = coupling.attend(
                "layer", *parts, heads=HEADS, plain=lambda q, k, v: attend_plain(q, k, v, HEADS)
            )
        return (out - rows.select(want, stream)[index].flatten(0, 1)).abs().max()

    a, b, c = rows.chunks
    assert max(call([a, b], "image"), call([c], "image")) < 1e-5
    assert max(call([b], "intrinsic"), call([c, a], "intrinsic")) < 1e-5
    assert not cache.values, "nothing is cache longer than needed"


def test_a_regrouped_batch_is_refused():
    coupling, q = Coupling(), torch.zeros(3, 4, 8)
    with coupling.call(Rows(("cond",), 2), {0: 1.0}):
        with pytest.raises(
            ValueError, match="Expected 4 rows in one call .*, got 3: a node regroups the batch"
        ):
            coupling.attend(0, q, q, q, heads=1, plain=F.scaled_dot_product_attention)


def test_a_call_ends_with_its_block_and_calls_nest():
    coupling, q = Coupling(), torch.zeros(2, 4, 8)
    with pytest.raises(RuntimeError, match="Expected a call of the coupled network inside"):
        coupling.attend(0, q, q, q, heads=1, plain=F.scaled_dot_product_attention)
    outer, inner = Rows(("a",), 1), Rows(("b",), 2, ("image",))
    with coupling.call(outer):
        with pytest.raises(ZeroDivisionError), coupling.call(inner):
            assert coupling.rows is inner
            1 / 0  # noqa: B018 - an error inside
        assert coupling.rows is outer
    assert not coupling.is_active


def test_weights_left_out_are_one():
    rows, (q, k, v) = rows_of()
    coupling, named = Coupling(), {"heads": HEADS, "plain": F.scaled_dot_product_attention}
    with coupling.call(rows):
        left_out = coupling.attend(0, q, k, v, **named)
    with coupling.call(rows, {0: 1.0}):
        assert torch.equal(coupling.attend(0, q, k, v, **named), left_out)
    with coupling.call(rows, {0: 0.5}):
        assert not torch.equal(coupling.attend(0, q, k, v, **named), left_out)


def test_gradients_pass_for_training():
    rows, qkv = rows_of(1, 1)
    qkv = [tensor.requires_grad_() for tensor in qkv]
    assert torch.autograd.gradcheck(lambda *t: attend_domains(*t, rows, 1.0, heads=HEADS), qkv)


def test_torch_compile_makes_few_graphs_for_many_layers_and_weights():
    """In scripts, where diffusers' whole network is one graph: w becomes one of its inputs.

    In ComfyUI see nodes/host/intrinsic_ldm/run.py.
    """
    from torch._dynamo.utils import counters

    coupling, (_, (q, k, v)) = Coupling(), rows_of(1, 1, dtype=torch.float32)

    def network(q):
        for layer in range(12):
            q = q + coupling.attend(layer, q, k, v, heads=HEADS, plain=F.scaled_dot_product_attention)
        return q

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(network, backend="eager")
    for step in range(10):
        weights = {layer: 0.05 + step / 10 + layer / 200 for layer in range(12)}
        with coupling.call(Rows(("prompt",), 1), weights):
            torch.testing.assert_close(compiled(q), network(q), rtol=0, atol=1e-6)
    assert 1 <= counters["stats"]["unique_graphs"] <= 3
    torch._dynamo.reset()
