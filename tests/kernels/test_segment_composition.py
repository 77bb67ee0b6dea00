"""The composition against the reference: values, which calls it makes, no copies where views serve,
and the host's own attention.
"""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from spatialweave.kernels.dispatch import Trust
from spatialweave.kernels.segment_attention import composition, log_sum_exp
from spatialweave.kernels.segment_attention.cases import CASES, EXTREME, LONG, NEVER
from spatialweave.kernels.segment_attention.composition import Inner, compose, explain, plan_of
from spatialweave.kernels.segment_attention.plan import parts
from spatialweave.kernels.segment_attention.reference import segment_attention_reference
from spatialweave.kernels.segment_attention.segments import Segments, Source, full_weight
from spatialweave.kernels.testing import assert_close, poisoned_memory


def exact(q, k, v, segments, weight, scale):
    return segment_attention_reference(
        q.double(), k.double(), v.double(), segments, weight.double(), scale=scale
    )


def seeded(case, dtype=torch.float32):
    return case.tensors(torch.Generator().manual_seed(len(case.name)), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES + EXTREME, ids=lambda case: case.name)
def test_composition_is_the_reference(case, dtype):
    q, k, v = seeded(case, dtype)
    weight = full_weight(case.log_weight(), q, case.segments)
    with poisoned_memory():
        out, lse = compose(q, k, v, case.segments, weight, scale=0.2, need_lse=True)
        alone, none = compose(q, k, v, case.segments, weight, scale=0.2, need_lse=False)
    want, want_lse = exact(q, k, v, case.segments, weight, 0.2)
    assert (
        out.dtype == dtype
        and out.transpose(1, 2).is_contiguous()
        and alone.transpose(1, 2).is_contiguous()
        and none is None
    )
    assert_close(out, want, dtype=dtype)
    assert_close(alone, want, dtype=dtype)
    seen = want_lse > -math.inf
    assert bool((lse > -math.inf).eq(seen).all())
    assert_close(lse[seen], want_lse[seen], dtype=dtype)


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_long_sequences(case):
    q, k, v = seeded(case)
    weight = full_weight(case.log_weight(), q, case.segments)
    out, lse = compose(q, k, v, case.segments, weight, scale=0.2, need_lse=True)
    want, want_lse = exact(q, k, v, case.segments, weight, 0.2)
    assert_close(out, want, dtype=torch.float32)
    assert_close(lse, want_lse, dtype=torch.float32)


@pytest.mark.parametrize("case", CASES + EXTREME, ids=lambda case: case.name)
def test_the_bias_path_is_the_reference(case, monkeypatch):
    """What MPS runs: no backend with a log-sum-exp."""
    monkeypatch.setattr(composition, "returns_lse", lambda q: False)
    q, k, v = seeded(case, torch.bfloat16)
    seen = []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *a, **o: (seen.append(o.get("attn_mask")), plain(*a, **o))[1],
    )
    weight = full_weight(case.log_weight(), q, case.segments)
    out, _ = compose(q, k, v, case.segments, weight, scale=0.2, need_lse=False)
    assert_close(out, exact(q, k, v, case.segments, weight, 0.2)[0], dtype=torch.bfloat16)
    assert all(mask.dtype == torch.bfloat16 for mask in seen if mask is not None)
    assert_close(
        compose(q, k, v, case.segments, weight, scale=0.2, need_lse=True)[0], out, dtype=torch.bfloat16
    )


def rows(count, length=32, width=16, seed=1):
    packed = torch.randn(count, length, 3, 2, width, generator=torch.Generator().manual_seed(seed))
    return [part.transpose(1, 2) for part in packed.unbind(2)]


def calls(monkeypatch, q, k, v, segments, weight, need_lse=False):
    """Every (q, k) an attention was called with."""
    made = []
    sdpa, with_lse = F.scaled_dot_product_attention, composition.attend_with_lse
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **o: (made.append((q, k)), sdpa(q, k, v, **o))[1]
    )
    monkeypatch.setattr(
        composition, "attend_with_lse", lambda q, k, v, **o: (made.append((q, k)), with_lse(q, k, v, **o))[1]
    )
    compose(q, k, v, segments, full_weight(weight, q, segments), scale=0.2, need_lse=need_lse)
    return made


def is_inside(view, tensor):
    return view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def test_weight_zero_is_one_call_on_the_tensors_themselves(monkeypatch):
    q, k, v = rows(4)
    ((seen_q, seen_k),) = calls(monkeypatch, q, k, v, Segments.coupled(32, (1, 0, 3, 2)), [[0.0, NEVER]])
    assert seen_q.data_ptr() == q.data_ptr() and seen_k.data_ptr() == k.data_ptr() and seen_k.shape == k.shape


def test_weight_one_on_pairs_is_one_call_on_a_view(monkeypatch):
    q, k, v = rows(4)
    ((seen_q, seen_k),) = calls(monkeypatch, q, k, v, Segments.coupled(32, (1, 0, 3, 2)), None)
    assert seen_q.shape == seen_k.shape == (2, 2, 64, 16) and is_inside(seen_q, q) and is_inside(seen_k, k)


def test_joint_sequence_of_one_weight_is_plain_attention(monkeypatch):
    q, k, v = rows(2)
    ((seen_q, seen_k),) = calls(monkeypatch, q, k, v, Segments.joint((8, 24)), None)
    assert seen_q.data_ptr() == q.data_ptr() and seen_k.data_ptr() == k.data_ptr() and seen_q.shape == q.shape


def test_a_joint_sequence_is_one_call_for_each_segment_that_sees_one_weight(monkeypatch):
    q, k, v = rows(2)
    made = calls(monkeypatch, q, k, v, Segments.joint((8, 24)), [[0.0, NEVER], [0.5, 0.5]])
    assert (
        [(tuple(seen_q.shape), seen_k.shape[2]) for seen_q, seen_k in made]
        == [((2, 2, 8, 16), 8), ((2, 2, 24, 16), 32)]
    )
    assert all(seen_k.data_ptr() == k.data_ptr() for _, seen_k in made)


@pytest.mark.parametrize("partner", [(1, 0, 3, 2), (2, 3, 0, 1)], ids=["pairs", "halves"])
def test_mixed_weights_copy_no_keys(monkeypatch, partner):
    q, k, v = rows(4)
    made = calls(monkeypatch, q, k, v, Segments.coupled(32, partner), [[[0.0, -0.5]]] * 4)
    assert len(made) == 3 and all(is_inside(seen_q, q) and is_inside(seen_k, k) for seen_q, seen_k in made)
    assert made[0][0].data_ptr() == q.data_ptr() and made[0][1].shape == k.shape, (
        "all rows' own streams in one call"
    )


def test_every_row_at_its_own_weight_takes_no_more_calls(monkeypatch):
    q, k, v = rows(4)
    assert (
        len(
            calls(
                monkeypatch, q, k, v, Segments.coupled(32, (1, 0, 3, 2)),
                [[[0.0, -w]] for w in (0.1, 0.2, 0.3, 0.4)],
            )
        )
        == 3
    )


def test_the_merge_needs_no_buffer_beside_the_outputs_of_the_calls(monkeypatch):
    """The output of the first call is the answer."""
    made = []
    plain = composition.attend_with_lse
    monkeypatch.setattr(
        composition, "attend_with_lse", lambda *a, **o: (made.append(plain(*a, **o)), made[-1])[1]
    )
    q, k, v = rows(4)
    segments = Segments.coupled(32, (1, 0, 3, 2))
    out, _ = compose(q, k, v, segments, full_weight([[0.0, -0.5]], q, segments), scale=0.2, need_lse=False)
    assert is_inside(out, made[0][0])


@pytest.mark.parametrize("known", [True, False], ids=["host", "device"])
def test_rows_that_read_the_same_keys_keep_their_own_weights(monkeypatch, known):
    """They could be one longer sequence of queries, but for their weights."""
    q, k, v = rows(2)
    segments = Segments((32,), (Source(0, 20, (1, 1)), Source(20, 12, (1, 1))))
    weight = full_weight([[[0.0, -2.0]], [[0.5, 1.0]]], q, segments)
    if not known:
        monkeypatch.setattr(
            composition, "plan_of", lambda *a: composition.make_plan(segments, 2, 32, None, True, True)
        )
    out, lse = compose(q, k, v, segments, weight, scale=0.2, need_lse=True)
    want, want_lse = exact(q, k, v, segments, weight, 0.2)
    assert_close(out, want, dtype=torch.float32)
    assert_close(lse, want_lse, dtype=torch.float32)


@pytest.mark.parametrize("most", [0, composition.MOST_BIAS], ids=["merged", "one call"])
@pytest.mark.parametrize("need_lse", [False, True], ids=["plain", "lse"])
def test_short_segments_are_one_call_with_a_bias_on_views(monkeypatch, most, need_lse):
    monkeypatch.setattr(composition, "MOST_BIAS", most)
    merges = []
    plain = composition.attend_with_lse
    monkeypatch.setattr(composition, "attend_with_lse", lambda *a, **o: (merges.append(1), plain(*a, **o))[1])
    q, k, v = rows(2)
    segments = Segments((10, 22), (Source(14, 18), Source(0, 14)))
    for log_weight in (
        [[0.0, -0.5], [NEVER, NEVER]], [[[0.1, -0.5], [0.3, NEVER]], [[0.2, 0.4], [-1.0, 0.0]]],
    ):
        weight = full_weight(log_weight, q, segments)
        out, lse = compose(q, k, v, segments, weight, scale=0.2, need_lse=need_lse)
        want, want_lse = exact(q, k, v, segments, weight, 0.2)
        assert_close(out, want, dtype=torch.float32)
        assert out.transpose(1, 2).is_contiguous()
        if lse is not None:
            seen = want_lse > -math.inf
            assert bool((lse > -math.inf).eq(seen).all())
            assert_close(lse[seen], want_lse[seen], dtype=torch.float32)
    assert bool(merges) == (most == 0)


@pytest.mark.parametrize(
    "weights",
    [[[0.0, NEVER]], [[[0.0, NEVER]], [[0.0, 0.0]]] * 2, None],
    ids=["zero", "half zero or one", "one"],
)
def test_weights_that_need_no_arithmetic_are_not_carried_to_the_device(monkeypatch, weights):
    """There the host would wait, or copy, for nothing."""

    def refuse(*given):
        raise AssertionError("a weight was asked for")

    monkeypatch.setattr(composition._Run, "weight", refuse)
    q, k, v = rows(4)
    segments = Segments.coupled(32, (1, 0, 3, 2))
    weight = full_weight(weights, q, segments)
    out, _ = compose(q, k, v, segments, weight, scale=0.2, need_lse=False)
    assert_close(out, exact(q, k, v, segments, weight, 0.2)[0], dtype=torch.float32)


def test_one_plan_serves_all_weights_that_are_equal_in_the_same_places():
    q, k, v = rows(4)
    segments = Segments.coupled(32, (1, 0, 3, 2))
    made = [
        plan_of(q, k, v, segments, full_weight([[[0.0, w]], [[0.0, 0.0]]] * 2, q, segments))
        for w in (-0.5, -2.0, 0.0, NEVER)
    ]
    assert made[0] is made[1] and made[0] != made[2] != made[3] != made[0]


def test_half_of_the_rows_at_zero_cost_no_second_call(monkeypatch):
    q, k, v = rows(4)
    weights = [[[0.0, NEVER]], [[0.0, -1.0]]] * 2
    made = calls(monkeypatch, q, k, v, Segments.coupled(32, (1, 0, 3, 2)), weights)
    assert sum(seen_q.shape[0] for seen_q, _ in made) == 2 + 2 * 2


def test_weights_on_a_device_are_all_called(monkeypatch):
    """No value is read: every source is a call, and a zero weight still is one."""
    q, k, v = rows(2)
    segments = Segments.coupled(32, (1, 0))
    known = full_weight([[0.0, NEVER]], q, segments)
    groups = composition.make_plan(segments, 2, 32, None, True, True)
    monkeypatch.setattr(composition, "plan_of", lambda *a: groups)
    out, lse = compose(q, k, v, segments, known, scale=0.2, need_lse=True)
    want, want_lse = exact(q, k, v, segments, known, 0.2)
    assert [len(group.pieces) for group in groups] == [2]
    assert_close(out, want, dtype=torch.float32)
    assert_close(lse, want_lse, dtype=torch.float32)


class Recorder:
    """A host's attention that also counts."""

    def __init__(self, lse=False):
        self.lse, self.biases, self.count = lse, [], 0

    def __call__(self, q, k, v, *, scale, bias=None):
        self.count += 1
        self.biases.append(bias)
        scores = q @ k.transpose(2, 3) * scale + (0 if bias is None else bias)
        out = scores.softmax(-1) @ v
        return (out, scores.logsumexp(-1)) if self.lse else out


HOSTS = {"plain": {}, "bias": {"takes_bias": True}, "lse": {"returns_lse": True}}


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_hosts_attention_gives_the_same(case, kind):
    q, k, v = seeded(case, torch.float64)
    recorder = Recorder(lse=kind == "lse")
    weight = full_weight(case.log_weight(), q, case.segments)
    inner = Inner(recorder, **HOSTS[kind])
    out, _ = compose(q, k, v, case.segments, weight, scale=0.2, need_lse=False, inner=inner)
    assert_close(out, exact(q, k, v, case.segments, weight, 0.2)[0])
    groups = plan_of(q, k, v, case.segments, weight)
    if case.name == "joint-all-one":
        groups = groups[:1]  # its segments see the same weights: one call
    able = [
        sum(len(parts(group, piece)) for piece in group.pieces)
        for group in groups
        if group.pieces and (kind != "plain" or len(group.pieces) == 1)
    ]
    assert recorder.count == (sum(able) if kind == "lse" else len(able))
    assert kind == "bias" or recorder.biases == [None] * recorder.count


def test_the_plan_says_what_the_host_cannot_serve():
    q, k, v = rows(4)
    segments = Segments.coupled(32, (1, 0, 3, 2))
    weight = full_weight([[[0.0, -1.0]], [[0.0, NEVER]]] * 2, q, segments)
    groups = plan_of(q, k, v, segments, weight)
    mixed, zero = explain(groups, Inner(Recorder()), lse=True)
    assert mixed == (
        "segment 0, 2 rows: 2 calls merged by log-sum-exp on views, "
        "torch's attention (the host's returns no log-sum-exp and takes no bias)"
    )
    assert zero == "segment 0, 2 rows: one call on views, the host's attention"
    assert (
        "one call with a bias over copied keys on views, the host's"
        in explain(groups, Inner(Recorder(), takes_bias=True), lse=True)[0]
    )
    assert (
        "2 calls merged by log-sum-exp on views, the host's"
        in explain(groups, Inner(Recorder(), returns_lse=True), lse=False)[0]
    )
    asked = explain(groups, Inner(Recorder(), takes_bias=True), lse=True, need_lse=True)
    assert all(line.endswith("torch's attention (the host's returns no log-sum-exp)") for line in asked)
    assert "one call with a bias over copied keys on views, torch's" in explain(groups, None, lse=False)[0]


def test_what_the_host_cannot_serve_is_told_once(caplog):
    composition._tell.cache_clear()
    q, k, v = rows(2)
    segments = Segments.coupled(32, (1, 0))
    with caplog.at_level(logging.WARNING, logger="spatialweave.kernels"):
        for weight in ([[0.0, NEVER]], [[0.0, -1.0]], [[0.0, -1.0]]):
            compose(
                q, k, v, segments, full_weight(weight, q, segments), scale=0.2, need_lse=False,
                inner=Inner(Recorder()),
            )
    (line,) = (record.getMessage() for record in caplog.records)
    assert (
        line.startswith("segment 0, 2 rows: ")
        and line.endswith("(the host's returns no log-sum-exp and takes no bias)")
    )


@pytest.mark.parametrize("need_lse", [False, True], ids=["plain", "lse"])
def test_a_host_with_a_log_sum_exp_is_used_where_torch_has_none(monkeypatch, need_lse):
    monkeypatch.setattr(composition, "returns_lse", lambda q: False)
    q, k, v = rows(2)
    segments, recorder = Segments.coupled(32, (1, 0)), Recorder(lse=True)
    weight = full_weight([[0.0, -1.0]], q, segments)
    out, lse = compose(
        q, k, v, segments, weight, scale=0.2, need_lse=need_lse, inner=Inner(recorder, returns_lse=True)
    )
    want, want_lse = exact(q, k, v, segments, weight, 0.2)
    assert recorder.count == 3 and recorder.biases == [None] * 3
    assert_close(out, want, dtype=torch.float32)
    if need_lse:
        assert_close(lse, want_lse, dtype=torch.float32)


class Card:
    """A tensor on a card where torch would choose cuDNN."""

    device = torch.device("cuda", 0)

    def __init__(self, tensor):
        self._tensor = tensor

    def __getattr__(self, name):
        return getattr(self._tensor, name)


@pytest.mark.parametrize(
    "dtype, capability, width, has",
    [
        (torch.float16, (7, 5), 64, True), (torch.bfloat16, (7, 5), 64, False),
        (torch.bfloat16, (8, 0), 40, True),
        (torch.float32, (7, 5), 64, True), (torch.float64, (9, 0), 64, False),
        (torch.float16, (9, 0), 12, False),
    ],
)  # fmt: skip
def test_where_torch_has_a_log_sum_exp_on_a_card(monkeypatch, dtype, capability, width, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert log_sum_exp.returns_lse(Card(torch.zeros(1, 1, 2, width, dtype=dtype))) is has


@pytest.mark.parametrize("right", [True, False])
def test_cudnns_log_sum_exp_is_used_where_torch_chooses_it_and_it_is_right(monkeypatch, caplog, right):
    q, k, v = rows(2)
    monkeypatch.setattr(log_sum_exp, "CUDNN", Trust())
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *given, **named: SDPBackend.CUDNN_ATTENTION.value)
    monkeypatch.setattr(log_sum_exp, "attend_by_cudnn", lambda *given, **named: ("cudnn", None))
    monkeypatch.setattr(log_sum_exp, "attend_by_efficient", lambda *given, **named: ("efficient", None))
    monkeypatch.setattr(log_sum_exp, "check_cudnn", lambda q: None if right else "off by 1")
    assert (
        [log_sum_exp.attend_with_lse(Card(q), k, v, scale=0.2)[0] for _ in range(2)]
        == ["cudnn" if right else "efficient"] * 2
    )
    assert (
        ("off by 1; torch's attention runs instead" in caplog.text) == (not right)
        and len(caplog.records) == (not right)
    )


def test_cudnns_check_tells_right_from_wrong(monkeypatch):
    q = rows(1)[0]
    right = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def cudnn(q, k, v, *, scale):
        return right(q, k, v, 0.0, False, scale=scale)

    monkeypatch.setattr(log_sum_exp, "attend_by_cudnn", cudnn)
    assert log_sum_exp.check_cudnn(q) is None
    monkeypatch.setattr(
        log_sum_exp, "attend_by_cudnn",
        lambda *given, scale: (lambda out, lse: (out, lse / math.log(2)))(*cudnn(*given, scale=scale))
    )
    assert log_sum_exp.check_cudnn(q).startswith("output and log-sum-exp are off by ")
