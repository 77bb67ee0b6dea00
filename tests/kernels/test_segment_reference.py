"""The reference against torch's own attention in float64, identities, gradients, and every refusal."""

import math

import pytest
import torch
import torch.nn.functional as F

from spatialweave.kernels.segment_attention.cases import CASES, NEVER
from spatialweave.kernels.segment_attention.reference import segment_attention_reference
from spatialweave.kernels.segment_attention.segments import (
    Segments,
    Source,
    check_scale,
    check_segments,
    check_tensors,
    check_values,
    full_weight,
    partner_rows,
)
from spatialweave.kernels.testing import assert_close


def one_by_one(q, k, v, segments, weight, scale):
    """Row by row, head by head, query by query, in float64, as the equation is written."""
    out = torch.zeros_like(q)
    weight = weight.expand(q.shape[0], q.shape[1], -1, -1)
    for b in range(q.shape[0]):
        for s, (start, stop) in enumerate(segments.query_ranges()):
            for h in range(q.shape[1]):
                for n in range(start, stop):
                    numerator, denominator = 0, 0
                    for t, source in enumerate(segments.sources):
                        row = b if source.rows is None else source.rows[b]
                        keys = slice(source.start, source.start + source.length)
                        mass = weight[b, h, s, t].exp() * (k[row, h, keys] @ q[b, h, n] * scale).exp()
                        numerator, denominator = numerator + mass @ v[row, h, keys], denominator + mass.sum()
                    out[b, h, n] = numerator / denominator if denominator > 0 else 0
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference_is_the_equation(case):
    q, k, v = case.tensors(torch.Generator().manual_seed(len(case.name)), torch.float64)
    weight = full_weight(case.log_weight(torch.float64), q, case.segments)
    out, lse = segment_attention_reference(q, k, v, case.segments, weight, scale=0.2)
    assert_close(out, one_by_one(q, k, v, case.segments, weight, 0.2))
    assert lse.shape == q.shape[:3]


def inputs(rows=4, heads=2, length=9, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, heads, length, width, generator=generator, dtype=torch.float64) for _ in range(3)
    ]


def reference(q, k, v, weights, partner=(1, 0, 3, 2)):
    segments = Segments.coupled(q.shape[2], partner)
    return segment_attention_reference(q, k, v, segments, full_weight(weights, q, segments), scale=0.3)


def test_weight_zero_is_plain_attention():
    q, k, v = inputs()
    out, lse = reference(q, k, v, [[0.0, NEVER]])
    assert_close(out, F.scaled_dot_product_attention(q, k, v, scale=0.3))
    assert_close(lse, (q @ k.transpose(2, 3) * 0.3).logsumexp(-1))


def test_weight_one_is_concatenation():
    q, k, v = inputs()
    other = [1, 0, 3, 2]
    whole = F.scaled_dot_product_attention(
        q, torch.cat([k, k[other]], 2), torch.cat([v, v[other]], 2), scale=0.3
    )
    assert_close(reference(q, k, v, None)[0], whole)


@pytest.mark.parametrize("weight", [1e-6, 0.3, 1.0, 50.0])
def test_equal_streams_make_the_weight_irrelevant(weight):
    q, k, v = inputs(rows=2)
    k[1], v[1] = k[0], v[0]
    assert_close(
        reference(q, k, v, [[0.0, math.log(weight)]], (1, 0))[0],
        F.scaled_dot_product_attention(q, k, v, scale=0.3),
    )


def test_large_logits_and_constant_keys_are_finite_and_right():
    q, k, v = inputs()
    out, _ = reference(q * 40, k * 40, v, [[0.0, -0.5]])
    bias = torch.cat([torch.zeros(9), torch.full((9,), -0.5)]).double()
    keys, values = torch.cat([k, k[[1, 0, 3, 2]]], 2), torch.cat([v, v[[1, 0, 3, 2]]], 2)
    assert_close(out, ((q * 40) @ (keys * 40).transpose(2, 3) * 0.3 + bias).softmax(-1) @ values)
    out, _ = reference(q, torch.ones_like(k), v, [[0.0, math.log(3)]])
    assert_close(
        out, ((v.mean(2, keepdim=True) + 3 * v[[1, 0, 3, 2]].mean(2, keepdim=True)) / 4).expand_as(out)
    )


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_gradients_are_those_of_the_formula(weight):
    """Against the derivative written by hand: d log w of a source is sum of p (dp - delta) over it;
    0 where it is not seen.
    """
    q, k, v = (tensor.requires_grad_() for tensor in inputs(rows=2))
    log_weight = torch.tensor(
        [[0.0, math.log(weight) if weight else NEVER]], dtype=torch.float64, requires_grad=True
    )
    out, _ = reference(q, k, v, log_weight, (1, 0))
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    dq, dk, dv, dw = torch.autograd.grad(out, (q, k, v, log_weight), grad)
    with torch.no_grad():
        keys, values = torch.cat([k, k.flip(0)], 2), torch.cat([v, v.flip(0)], 2)
        p = (q @ keys.transpose(2, 3) * 0.3 + log_weight[0].repeat_interleave(9)).softmax(-1)
        ds = p * (grad @ values.transpose(2, 3) - (grad * out).sum(-1, keepdim=True))
        by_key, by_value = ds.transpose(2, 3) @ q * 0.3, p.transpose(2, 3) @ grad
    assert_close(dq, ds @ keys * 0.3)
    assert_close(dk, by_key[:, :, :9] + by_key[:, :, 9:].flip(0))
    assert_close(dv, by_value[:, :, :9] + by_value[:, :, 9:].flip(0))
    assert_close(dw, ds.unflatten(3, (2, 9)).sum((0, 1, 2, 4))[None])
    assert (dw[0, 1] == 0) == (weight == 0)


def test_gradcheck_with_a_query_that_sees_nothing():
    segments = Segments((2, 3), (Source(0, 5), Source(1, 2, (1, 1))))
    q, k, v = (tensor.requires_grad_() for tensor in inputs(rows=2, heads=1, length=5, width=4))
    weight = torch.tensor([[NEVER, NEVER], [0.2, -0.4]], dtype=torch.float64)

    def call(q, k, v, w):
        log_weight = torch.stack([weight[0], w])[None, None]
        return segment_attention_reference(q, k, v, segments, log_weight, scale=0.5)[0]

    assert torch.autograd.gradcheck(call, (q, k, v, weight[1].clone().requires_grad_()))
    out = call(q, k, v, weight[1])
    assert bool((out[:, :, :2] == 0).all())


def test_partners_by_name():
    assert partner_rows("pairs", 4) == (1, 0, 3, 2)
    assert partner_rows("halves", 4) == (2, 3, 0, 1)
    assert partner_rows(torch.tensor([2, 0, 1]), 3) == (2, 0, 1)


BAD_SEGMENTS = {
    "start -1 and length 4": lambda: Source(-1, 4),
    "start >= 0 and length >= 1, got start 0 and length 0": lambda: Source(0, 0),
    "Expected 1 to 8 query segments, got 0": lambda: Segments((), (Source(0, 1),)),
    "Expected 1 to 8 sources, got 9": lambda: Segments((1,), (Source(0, 1),) * 9),
    "at least one query": lambda: Segments((3, 0), (Source(0, 1),)),
    'an even number of rows for partner "pairs", got 3': lambda: partner_rows("pairs", 3),
    "2 row indices, got 'all'": lambda: partner_rows("all", 2),
    r"Partner rows: expected whole numbers, got \(1.0, 0.5\)": lambda: partner_rows(
        torch.tensor([1.0, 0.5]), 2
    ),
    "Partner rows: expected": lambda: partner_rows(torch.tensor(0.5), 1),
    r"Rows of a source: expected whole numbers, got \(0.5,\)": lambda: Source(0, 4, (0.5,)),
    "Start and length of a source": lambda: Source(0, 4.5),
    "The query lengths": lambda: Segments((2.5,), (Source(0, 1),)),
    "positive finite scale, .*, got -1": lambda: check_scale(-1, 8),
    "positive finite scale, .*, got nan": lambda: check_scale(math.nan, 8),
}


@pytest.mark.parametrize("sentence", BAD_SEGMENTS)
def test_segments_refuse(sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        BAD_SEGMENTS[sentence]()


def bad(**changes):
    q, k, v = inputs()
    given = {"q": q, "k": k, "v": v, "segments": Segments.coupled(9, (1, 0, 3, 2)), "weight": None} | changes
    check_tensors(given["q"], given["k"], given["v"])
    check_segments(given["q"], given["k"], given["segments"])
    check_values(full_weight(given["weight"], given["q"], given["segments"]))


def meta(tensor):
    return torch.empty_like(tensor, device="meta")


X = inputs()[0]
BAD_CALLS = {
    r"q \(4, 2, 9\), k": dict(q=X[..., 0]),
    r"k \(4, 2, 9, 8\), v \(4, 2, 8, 8\)": dict(v=X[:, :, :8]),
    r"q \(4, 1, 9, 8\)": dict(q=X[:, :1]),
    r"q \(4, 2, 9, 7\)": dict(q=X[..., :7]),
    r"Expected non-empty tensors, got q \(4, 2, 0, 8\)": dict(q=X[:, :, :0]),
    "q torch.float16, k torch.float64": dict(q=X.half()),
    "got torch.int64. Cast": dict(q=X.long(), k=X.long(), v=X.long()),
    "k on meta": dict(k=meta(X), v=meta(X)),
    r"of 9 queries in all, as q has, got \(8,\), 8 in all": dict(segments=Segments.coupled(8, (1, 0, 3, 2))),
    "Source 0: expected an end of at most 9, the number of keys, got 10": dict(
        segments=Segments((9,), (Source(1, 9),))
    ),
    "Source 1: expected one row of k per row of q, 4, got 2 rows": dict(segments=Segments.coupled(9, (1, 0))),
    "expected rows of k from 0 to 3, got 0 to 4": dict(segments=Segments.coupled(9, (1, 0, 4, 2))),
    r"b = 4 rows, h = 2 heads, s = 1 query segments and t = 2 sources, got \(1, 3\)": dict(
        weight=torch.zeros(1, 3)
    ),
    r"got \(1, 4, 2, 1, 2\)": dict(weight=torch.zeros(1, 4, 2, 1, 2)),
    "floating-point log weights, got torch.int64": dict(weight=torch.zeros(1, 2, dtype=torch.int64)),
    "Expected log weights on cpu, as q, or on the CPU, got meta": dict(
        weight=torch.zeros(1, 2, device="meta")
    ),
    r"\(1, 1, 9, 18\). .*a mask of single tokens is not supported": dict(weight=torch.zeros(1, 1, 9, 18)),
    "masked sources, got NaN": dict(weight=torch.tensor([[0.0, -1.0]]).log()),
    "got NaN or .inf": dict(weight=[[0.0, math.inf]]),
}


@pytest.mark.parametrize("sentence", BAD_CALLS)
def test_calls_refuse(sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        bad(**BAD_CALLS[sentence])
