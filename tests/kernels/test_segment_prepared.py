"""Prepared calls: equal in bits to the long way, found only where they serve, and nothing checked twice."""

import gc
import importlib.util
import math
import weakref
from pathlib import Path

import pytest
import torch

from spatialweave.kernels import Segments, cross_domain_attention, segment_attention, use_backend
from spatialweave.kernels.dispatch import Trust
from spatialweave.kernels.segment_attention import composition, launch, op, prepared
from spatialweave.kernels.segment_attention.cases import CASES, EXTREME, LONG, NEVER
from spatialweave.kernels.segment_attention.composition import Inner, compose
from spatialweave.kernels.segment_attention.segments import full_weight

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def seeded(case, dtype=torch.float32, seed=0):
    return case.tensors(torch.Generator().manual_seed(seed), dtype)


@pytest.fixture
def served(monkeypatch):
    """Counts the calls that a prepared call served and those that went the long way."""
    counts = {"prepared": 0, "long": 0}
    run, attend = prepared.Kept.run, op._attend

    def counted_run(self, *given):
        found = run(self, *given)
        counts["prepared"] += found is not None
        return found

    monkeypatch.setattr(prepared.Kept, "run", counted_run)
    monkeypatch.setattr(
        op, "_attend", lambda *given: (counts.__setitem__("long", counts["long"] + 1), attend(*given))[1]
    )
    return counts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("need_lse", [False, True], ids=["plain", "lse"])
@pytest.mark.parametrize("case", CASES + EXTREME + LONG, ids=lambda case: case.name)
def test_a_prepared_call_has_the_bits_of_the_composition(case, need_lse, dtype, served):
    for seed in (0, 1):
        q, k, v = seeded(case, dtype, seed)
        got = segment_attention(q, k, v, case.segments, case.weights, scale=0.2, return_lse=need_lse)
        weight = full_weight(case.weights, q, case.segments)
        out, lse = compose(q, k, v, case.segments, weight, scale=0.2, need_lse=need_lse)
        ours = got[0] if need_lse else got
        assert torch.equal(ours, out) and ours.stride() == out.stride()
        assert not need_lse or (torch.equal(got[1], lse) and got[1].dtype == lse.dtype)
    assert served["prepared"] == 1


@pytest.mark.parametrize("weight", [0.4, [0.4, 1.0, 0.4, 1.0], [0.0, 1.0, 0.0, 1.0], [1.0] * 4, [0.0] * 4])
@pytest.mark.parametrize("partner", ["pairs", "halves", (1, 0, 3, 2), [2, 3, 0, 1]], ids=str)
@pytest.mark.parametrize("merged", [True, False], ids=["b n c", "b h n d"])
def test_coupled_rows_have_the_bits_of_the_composition(weight, partner, merged, served):
    generator = torch.Generator().manual_seed(3)
    packed = torch.randn(4, 24, 3 * 32, generator=generator)
    given = packed.chunk(3, dim=2)  # views with an offset
    split = [tensor.unflatten(2, (2, 16)).transpose(1, 2) for tensor in given]
    rows = torch.tensor([1, 0, 3, 2] if partner in ("pairs", (1, 0, 3, 2)) else [2, 3, 0, 1]).tolist()
    w = torch.tensor(weight).expand(4)[:, None, None, None]
    logs = torch.cat([torch.zeros_like(w), w.log()], 3)
    want, _ = compose(*split, Segments.coupled(24, tuple(rows)), logs, scale=0.25, need_lse=False)
    for _ in range(2):
        ours = (
            cross_domain_attention(*given, weight, partner=partner, heads=2)
            if merged
            else cross_domain_attention(*split, weight, partner=partner)
        )
        assert torch.equal(ours, want.transpose(1, 2).flatten(2) if merged else want)
        assert ours.is_contiguous() if merged else ours.transpose(1, 2).is_contiguous()
    assert served == {"prepared": 1, "long": 1}


def test_one_prepared_call_serves_all_weights_that_are_equal_in_the_same_places(served):
    q, k, v = seeded(CASES[3])
    segments = CASES[3].segments
    for w in (0.25, 0.5, 0.75):
        weights = [[[0.0, math.log(w)]], [[0.0, 0.0]]] * 2
        ours = segment_attention(q, k, v, segments, weights)
        want, _ = compose(
            q, k, v, segments, full_weight(weights, q, segments), scale=24**-0.5, need_lse=False
        )
        assert torch.equal(ours, want)
    assert served == {"prepared": 2, "long": 1}


def test_nothing_is_checked_twice(monkeypatch):
    q, k, v = seeded(CASES[3])
    first = segment_attention(q, k, v, CASES[3].segments, CASES[3].weights)

    def refuse(*given, **named):
        raise AssertionError("a second check")

    for name in ("check_tensors", "check_segments", "check_scale", "full_weight", "check_values",
                 "partner_rows", "backend_reasons", "choose"):  # fmt: skip
        monkeypatch.setattr(op, name, refuse)
    monkeypatch.setattr(composition, "make_plan", refuse)
    assert torch.equal(first, segment_attention(q, k, v, CASES[3].segments, CASES[3].weights))


def test_what_was_refused_is_refused_again_beside_a_prepared_call():
    q, k, v = seeded(CASES[0])
    good = [0.4, 1.0, 0.5, 1.0]
    cross_domain_attention(q, k, v, good)
    for bad, sentence in (
        ([0.4, 1.0, -0.5, 1.0], "not negative"), ([0.4, 1.0, math.nan, 1.0], "got NaN"),
        ([0.4, 1.0, 0.5], "Expected a weight of shape"), ([[0.4] * 2] * 4, "Expected log weights of shape"),
    ):  # fmt: skip
        for _ in range(2):
            with pytest.raises(ValueError, match=sentence):
                cross_domain_attention(q, k, v, bad)
    for _ in range(2):
        with pytest.raises(TypeError, match="of one dtype"):
            cross_domain_attention(q, k, v.double(), good)
        with pytest.raises(ValueError, match="Expected q .b, h, n, d."):
            cross_domain_attention(q, k[:, :, :3], v, good)


def test_calls_that_something_follows_are_not_prepared(served):
    q, k, v = seeded(CASES[3])
    cross_domain_attention(q, k, v, [0.4, 1.0] * 2)
    leaf = q.clone().requires_grad_()
    out = cross_domain_attention(leaf, k, v, [0.4, 1.0] * 2)
    assert out.requires_grad and served["prepared"] == 0
    with torch.no_grad():
        cross_domain_attention(leaf, k, v, [0.4, 1.0] * 2)
    assert served["prepared"] == 1
    plain = torch.nn.functional.scaled_dot_product_attention
    cross_domain_attention(q, k, v, 1.0, inner=Inner(lambda *a, scale: plain(*a, scale=scale)))
    assert served["prepared"] == 1
    learned = torch.tensor([[0.0, -0.5]], requires_grad=True)
    out = segment_attention(q, k, v, CASES[3].segments, learned)
    assert out.requires_grad and served["prepared"] == 1


def test_a_forced_backend_is_part_of_the_key(served):
    q, k, v = seeded(CASES[3])
    for name in ("composition", "reference", None, "reference"):
        for _ in range(2):
            if name is None:
                cross_domain_attention(q, k, v, 0.5)
            else:
                with use_backend(name):
                    cross_domain_attention(q, k, v, 0.5)
    assert served == {"prepared": 2, "long": 6}, "the reference is never prepared"


def test_other_layouts_are_other_calls(served):
    q, k, v = (tensor.contiguous() for tensor in seeded(CASES[3]))
    whole = cross_domain_attention(q, k, v, 0.5)
    for given in ([tensor.mT.contiguous().mT for tensor in (q, k, v)],
                  [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]):  # fmt: skip
        assert float((cross_domain_attention(*given, 0.5) - whole).abs().max()) < 1e-6
    few = [tensor[:2] for tensor in (q, k, v)]
    assert torch.equal(cross_domain_attention(*few, 0.5), cross_domain_attention(*few, 0.5))
    assert served["long"] == 4


def test_a_view_at_an_offset_is_read_where_it_lies():
    base = torch.randn(3, 6, 2, 10, 16, generator=torch.Generator().manual_seed(5))
    whole = [cross_domain_attention(*base[:, start : start + 2], [0.3, 1.0]) for start in (0, 2, 4)]
    for start, got in zip((0, 2, 4), whole):
        alone = [tensor.clone() for tensor in base[:, start : start + 2]]
        assert torch.equal(got, cross_domain_attention(*alone, [0.3, 1.0]))


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(prepared, "MOST_CALLS", 3)
    for length in range(1, 9):
        cross_domain_attention(*torch.randn(3, 2, 1, length, 16), 0.5)
    assert len(prepared._calls) == 3


def test_prepared_calls_hold_no_tensors():
    q, k, v = (tensor.clone() for tensor in seeded(CASES[3]))
    cross_domain_attention(q, k, v, [0.4, 1.0] * 2)
    seen = [weakref.ref(tensor.untyped_storage()) for tensor in (q, k, v)]
    assert prepared._calls
    del q, k, v
    gc.collect()
    assert not any(reference() for reference in seen)


def test_weights_made_in_inference_mode_serve_outside(served):
    q, k, v = seeded(CASES[3])
    with torch.inference_mode():
        inside = cross_domain_attention(q, k, v, [0.35, 1.0] * 2)
    assert torch.equal(inside, cross_domain_attention(q, k, v, [0.35, 1.0] * 2)) and served["prepared"] == 1


@pytest.mark.parametrize("given, want", [
    (0.5, ((), (0.5,))), ([1, 2.0], ((2,), (1, 2.0))), ([[0.0, NEVER]], ((1, 2), (0.0, NEVER))),
    (torch.tensor([[1.0], [2.0]]), ((2, 1), (1.0, 2.0))), ([[1.0], [1.0, 2.0]], None), ("pairs", None),
    (torch.zeros(2, requires_grad=True), None), ([], None),
])  # fmt: skip
def test_weights_are_read_as_shape_and_values(given, want):
    assert prepared.freeze(given) == want


@pytest.fixture
def card(monkeypatch):
    """A card that compiles for sm_90 and launches nothing."""
    pytest.importorskip("triton")
    spec = importlib.util.spec_from_file_location(
        "spatialweave_fake_driver", Path(__file__).with_name("fake_driver.py")
    )
    fake_driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake_driver)
    monkeypatch.setattr(launch, "TRUST", Trust())
    return fake_driver.install(monkeypatch.setattr, keep=True)


def argument(given):
    """A tensor by its address, for a table, or by what the kernel may assume of it."""
    return (given.dtype, given.data_ptr() % 16) if isinstance(given, torch.Tensor) else given


@pytest.mark.parametrize("need_lse", [False, True], ids=["plain", "lse"])
def test_a_prepared_launch_passes_what_the_first_one_passed(card, need_lse, served):
    q, k, v = (tensor.bfloat16() for tensor in seeded(CASES[3]))
    weights = torch.tensor([[[[0.0, -0.5]]], [[[0.0, 0.0]]]] * 2)
    for _ in range(3):
        segment_attention(q, k, v, CASES[3].segments, weights, return_lse=need_lse)
    first, second, third = card.launches
    assert first[0] == second[0] == third[0]
    assert [*map(argument, first[1])] == [*map(argument, second[1])] == [*map(argument, third[1])]
    for same in (0, 1, 2, 6, 7):  # q, k, v and the tables
        assert first[1][same].data_ptr() == third[1][same].data_ptr()
    assert torch.equal(first[1][5], third[1][5]) and served == {"prepared": 2, "long": 1}


def test_tensors_that_are_not_aligned_take_the_long_way(card, served):
    whole = torch.randn(3, 4 * 64 * 2 * 24 + 8).bfloat16()
    at = [[row[first : first + 4 * 64 * 48].view(4, 64, 48) for row in whole] for first in (0, 1)]
    for given in (at[0], at[0], at[1], at[0]):
        cross_domain_attention(*given, [0.4, 1.0] * 2, heads=2)
    assert card.count == 3 and served == {"prepared": 2, "long": 2}


def test_a_prepared_launch_that_fails_is_the_last(card, caplog, served):
    q, k, v = (tensor.bfloat16() for tensor in seeded(CASES[3]))
    cross_domain_attention(q, k, v, 0.4)
    card.error = OSError("the card is gone")
    ours = cross_domain_attention(q, k, v, 0.4)
    assert "the card is gone" in caplog.text and launch.TRUST.failed
    with use_backend("composition"):
        assert torch.equal(ours, cross_domain_attention(q, k, v, 0.4))
    card.error = None
    assert torch.equal(ours, cross_domain_attention(q, k, v, 0.4)) and card.count == 1
