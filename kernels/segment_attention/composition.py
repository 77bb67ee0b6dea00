"""Segment attention as ordinary attention calls, for CPU, MPS and wherever the kernel does not run.

Sources of weight zero are skipped; adjacent sources of one weight are one call on a view; other weights are
calls merged by their log-sum-exp, or, where no backend returns one, a bias in q's dtype (cuDNN reads a
float32 mask as half precision). On a CPU short segments of one sequence are one call with a bias, too:
torch's CPU attention uses tiles of 256 queries from 768 queries on, of 64 below.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .log_sum_exp import attend_with_lse, returns_lse
from .plan import Group, Piece, is_arithmetic, is_view, make_plan, own_range, parts
from .reference import bias_row, segment_attention_reference
from .segments import Segments, on_device

FULL_TILES = 768  # queries
MOST_BIAS = 1 << 24  # values: 64 MB of float32
_log = logging.getLogger("spatialweave.kernels")


@dataclass(frozen=True)
class Inner:
    """A host's own attention: call(q, k, v, *, scale[, bias]) with (b, h, n, d) tensors -> (b, h, n, d).

    `takes_bias`: it adds a bias (b, h or 1, 1, m) in q's dtype to the scores. `returns_lse`: it returns (o,
    lse) with lse (b, h, n) instead of o. Without either it serves only calls whose weights are all 0 or
    equal; the rest runs on torch's attention, which is logged once.
    """

    call: Callable[..., Tensor | tuple[Tensor, Tensor]]
    takes_bias: bool = False
    returns_lse: bool = False

    def serves(self, group: Group, need_lse: bool) -> bool:
        return (
            not group.pieces
            or self.returns_lse
            or (not need_lse and (len(group.pieces) == 1 or self.takes_bias))
        )


def compose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    log_weight: Tensor,
    *,
    scale: float,
    need_lse: bool,
    inner: Inner | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `segment_attention_reference`; o is stored as (B, N, H, D).

    Weights on the CPU are known and save calls.
    """
    # torch's attention on a CPU reads a head width of another stride as if it lay together
    q, k, v = (tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (q, k, v))
    segments, log_weight = _united(segments, log_weight)
    groups = plan_of(q, k, v, segments, log_weight)
    if inner is not None:
        for line in explain(groups, inner, lse=returns_lse(q), need_lse=need_lse, only_unserved=True):
            _tell(line)
    run = _Run(q, k, v, segments, log_weight, scale, need_lse, inner)
    if need_lse and not run.can_merge():
        out, lse = segment_attention_reference(q, k, v, segments, log_weight, scale=scale)
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse
    if len(groups) == len(segments.queries) == 1 and groups[0].pieces and is_arithmetic(groups[0].rows, 1):
        return run.whole(groups[0])
    keys = own_range(segments, q.shape[0]) if inner is None and run.is_short(groups) else None
    return run.in_one(*keys) if keys else run.grouped(groups)


def _united(segments: Segments, log_weight: Tensor) -> tuple[Segments, Tensor]:
    """Merge all query segments into one if their weights are on the CPU and equal."""
    first = log_weight[:, :, :1]
    if (
        len(segments.queries) == 1
        or log_weight.device.type != "cpu"
        or not torch.equal(first.expand_as(log_weight), log_weight)
    ):
        return segments, log_weight
    return Segments((sum(segments.queries),), segments.sources), first


def plan_of(q: Tensor, k: Tensor, v: Tensor, segments: Segments, log_weight: Tensor) -> tuple[Group, ...]:
    """The cached plan of calls.

    It depends on which weights are equal, not on their values, so weights on the CPU are replaced by indices:
    one plan serves all steps of a sampler.
    """
    known = None
    if log_weight.device.type == "cpu" and q.device.type != "meta":
        number = {-math.inf: -math.inf}
        rows = log_weight.expand(q.shape[0], *log_weight.shape[1:]).permute(0, 2, 3, 1).tolist()
        known = tuple(
            tuple(tuple(tuple(number.setdefault(w, len(number)) for w in of) for of in seen) for seen in row)
            for row in rows
        )
    joinable = all(tensor.stride(0) == tensor.shape[2] * tensor.stride(2) for tensor in (k, v))
    return make_plan(
        segments, q.shape[0], k.shape[2], known, joinable, q.stride(0) == q.shape[2] * q.stride(2)
    )


@dataclass(frozen=True)
class _Run:
    q: Tensor
    k: Tensor
    v: Tensor
    segments: Segments
    log_weight: Tensor
    scale: float
    need_lse: bool
    inner: Inner | None

    def whole(self, group: Group) -> tuple[Tensor, Tensor | None]:
        """The output of a group of all queries, copied only if it is not stored as (B, N, H, D)."""
        (b, h, n, d), (out, lse) = self.q.shape, self.one(group)
        if lse is not None and self.need_lse:
            lse = lse.unflatten(2, (group.fold, n)).transpose(1, 2).reshape(b, h, n)
        out = out.transpose(1, 2).reshape(b, n, h, d).transpose(1, 2)
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse if self.need_lse else None

    def grouped(self, groups: tuple[Group, ...]) -> tuple[Tensor, Tensor | None]:
        b, h, n, d = self.q.shape
        out = torch.empty(b, n, h, d, dtype=self.q.dtype, device=self.q.device).transpose(1, 2)
        lse = self.log_weight.new_empty(b, h, n, device=self.q.device) if self.need_lse else None
        for group in groups:
            result, result_lse = self.one(group)
            _put(out, result, group, self.segments)
            if lse is not None and result_lse is not None:
                _put(lse[..., None], result_lse[..., None], group, self.segments)
        return out, lse

    def one(self, group: Group) -> tuple[Tensor, Tensor | None]:
        q = self.queries(group)
        if not group.pieces:
            return torch.zeros_like(q), q.new_full(q.shape[:3], -math.inf, dtype=self.log_weight.dtype)
        if len(group.pieces) == 1:
            piece = group.pieces[0]
            out, lse = self.call(q, self.keys(self.k, piece), self.keys(self.v, piece), self.need_lse)
            return self.hidden(out, group), None if lse is None else lse + self.weight(group, piece)
        wants_bias = self.inner is not None and self.inner.takes_bias and not self.inner.returns_lse
        if not self.need_lse and (wants_bias or not self.can_merge()):
            return self.biased(q, group), None
        return self.merged(q, group)

    def can_merge(self) -> bool:
        return returns_lse(self.q) or (self.inner is not None and self.inner.returns_lse)

    def merged(self, q: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Merge the other pieces in place into the output of one whose keys are a view."""
        first, *others = sorted(group.pieces, key=lambda piece: not is_arithmetic(piece.rows))
        out, lse = self.call(q, self.keys(self.k, first), self.keys(self.v, first), True)
        out, lse = out if self.inner is None else out.clone(), lse + self.weight(group, first)
        exact = out.dtype if out.dtype in (torch.float32, torch.float64) else torch.float32
        for part in (part for piece in others for part in parts(group, piece)):
            piece, at = part.pieces[0], tuple(group.rows.index(row) for row in part.rows)
            asked = q if len(at) == len(group.rows) else self.queries(part)
            more, more_lse = self.call(asked, self.keys(self.k, piece), self.keys(self.v, piece), True)
            more_lse = more_lse + self.weight(part, piece)
            to, to_lse = _take(out, at), _take(lse, at)
            share = torch.where(more_lse == -math.inf, 0.0, torch.sigmoid(more_lse - to_lse))[..., None].to(
                exact
            )
            if exact == out.dtype:
                to.lerp_(more, share)
            else:
                to.copy_(torch.lerp(to.to(exact), more.to(exact), share))
            to_lse.copy_(torch.logaddexp(to_lse, more_lse))
        return self.hidden(out, group), lse

    def is_short(self, groups: tuple[Group, ...]) -> bool:
        """Whether one call with a bias replaces merged calls of few queries: on a CPU, up to MOST_BIAS.

        Never in half precision, in which the bias would round.
        """
        q, (rows, heads, *_) = self.q, self.log_weight.shape
        short = any(
            len(group.pieces) > 1 and self.segments.queries[group.segment] < FULL_TILES for group in groups
        )
        small = (
            rows * heads * q.shape[2] * sum(source.length for source in self.segments.sources) <= MOST_BIAS
        )
        return short and small and q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)

    def in_one(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """All segments in one call on a view of the keys, with the weights as a bias."""
        order = sorted(range(len(self.segments.sources)), key=lambda slot: self.segments.sources[slot].start)
        segments = Segments(self.segments.queries, tuple(self.segments.sources[slot] for slot in order))
        unseen = (self.log_weight == -math.inf).all(3, keepdim=True)
        bias = bias_row(self.q, segments, self.log_weight[..., order].masked_fill(unseen, 0.0)).to(
            self.q.dtype
        )
        keys, values = self.k[:, :, start:stop], self.v[:, :, start:stop]
        call = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = call(self.q, keys, values, 0.0, False, attn_mask=bias, scale=self.scale)
        if bool(unseen.any()):
            rows = unseen.repeat_interleave(torch.tensor(segments.queries), dim=2)
            out, lse = out.masked_fill_(rows, 0.0), lse.masked_fill_(rows[..., 0], -math.inf)
        # from which torch on its output lies as q does, and not as promised, differs between versions
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse if self.need_lse else None

    def hidden(self, out: Tensor, group: Group) -> Tensor:
        """Zero the heads that see none of the group's sources.

        (Rows of which no head does are in no group.) No sync.
        """
        known = self.log_weight.device.type == "cpu"
        if known and self.log_weight.shape[1] == 1:
            return out
        unseen = (
            torch.stack([self.weight_of(self.log_weight, group, piece) for piece in group.pieces])
            .eq(-math.inf)
            .all(0)
        )
        if known and not bool(unseen.any()):
            return out
        # a host may still hold the tensor that it returned
        fill = out.masked_fill_ if self.inner is None else out.masked_fill
        return fill(unseen.to(out.device, non_blocking=True)[..., None], 0.0)

    def biased(self, q: Tensor, group: Group) -> Tensor:
        """One call with the weights as a bias in q's dtype, over concatenated keys."""
        keys, values = (
            torch.cat([self.keys(tensor, piece) for piece in group.pieces], 2) for tensor in (self.k, self.v)
        )
        bias = torch.cat(
            [self.weight(group, piece)[..., None].expand(-1, -1, -1, piece.length) for piece in group.pieces],
            3,
        )
        bias = bias.expand(len(group.rows), -1, -1, -1).to(q.dtype)
        unseen = (bias == -math.inf).all(3, keepdim=True)
        bias = bias.masked_fill(unseen, 0.0)
        if self.inner is not None and self.inner.takes_bias:
            out = self.inner.call(q, keys, values, scale=self.scale, bias=bias)
        else:
            out = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=bias.expand(-1, -1, q.shape[2], -1), scale=self.scale
            )
        return out.masked_fill(unseen, 0.0)

    def call(self, q: Tensor, k: Tensor, v: Tensor, need_lse: bool) -> tuple[Tensor, Tensor | None]:
        if self.inner is not None and (self.inner.returns_lse or not need_lse):
            given = self.inner.call(q, k, v, scale=self.scale)
            return given if self.inner.returns_lse else (given, None)
        if need_lse:
            return attend_with_lse(q, k, v, scale=self.scale)
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale), None

    @cached_property
    def near_weight(self) -> Tensor:
        """The log weights on q's device: one small copy per call."""
        return on_device(self.log_weight, self.q.device)

    def weight(self, group: Group, piece: Piece) -> Tensor:
        """The piece's log weight for each batch entry of the group, (1 or g, 1 or h, 1)."""
        return self.weight_of(self.near_weight, group, piece)

    @staticmethod
    def weight_of(log_weight: Tensor, group: Group, piece: Piece) -> Tensor:
        weight = log_weight[:, :, group.segment, piece.slots[0]]
        return (weight if weight.shape[0] == 1 else _take(weight, group.rows))[..., None]

    def queries(self, group: Group) -> Tensor:
        return _queries(self.q, group, self.segments)

    def keys(self, tensor: Tensor, piece: Piece) -> Tensor:
        if not is_arithmetic(piece.rows):
            return _take(tensor, piece.rows)[:, :, piece.start : piece.start + piece.length]
        step = piece.rows[1] - piece.rows[0] if len(piece.rows) > 1 else 0
        row, head, key, _ = tensor.stride()
        offset = tensor.storage_offset() + piece.rows[0] * row + piece.start * key
        shape = (len(piece.rows), tensor.shape[1], piece.length, tensor.shape[3])
        return tensor.as_strided(shape, (step * row, head, key, 1), offset)


def _take(tensor: Tensor, rows: tuple[int, ...]) -> Tensor:
    if is_arithmetic(rows, 1):
        step = rows[1] - rows[0] if len(rows) > 1 else 1
        return tensor[rows[0] : rows[-1] + 1 : step]
    return tensor[torch.tensor(rows, device=tensor.device)]


def _queries(tensor: Tensor, group: Group, segments: Segments) -> Tensor:
    start, stop = segments.query_ranges()[group.segment]
    if group.fold == 1:
        return _take(tensor[:, :, start:stop], group.rows)
    step = group.rows[1] - group.rows[0] if len(group.rows) > 1 else 0
    row, *rest = tensor.stride()
    shape = (len(group.rows), tensor.shape[1], group.fold * tensor.shape[2], tensor.shape[3])
    return tensor.as_strided(shape, (step * row, *rest), tensor.storage_offset() + group.rows[0] * row)


def _place(whole: Tensor, group: Group, segments: Segments) -> Tensor | None:
    """The view of `whole` that holds the group's output, or None if no view does."""
    if group.fold > 1 or not is_arithmetic(group.rows, 1):
        return None
    start, stop = segments.query_ranges()[group.segment]
    return _take(whole, group.rows)[:, :, start:stop]


def _put(whole: Tensor, part: Tensor, group: Group, segments: Segments) -> None:
    start, stop = segments.query_ranges()[group.segment]
    if group.fold > 1:
        for index, row in enumerate(group.rows):
            entry = part[index].unflatten(1, (group.fold, whole.shape[2])).transpose(0, 1)
            whole[row : row + group.fold].copy_(entry)
    elif (place := _place(whole, group, segments)) is not None:
        place.copy_(part)
    else:
        whole[:, :, start:stop].index_copy_(0, torch.tensor(group.rows, device=whole.device), part)


@lru_cache(maxsize=256)
def _tell(line: str) -> None:
    """Log once which calls a host's attention does not serve."""
    _log.warning("%s", line)


def explain(
    groups: tuple[Group, ...],
    inner: Inner | None,
    *,
    lse: bool,
    need_lse: bool = False,
    only_unserved: bool = False,
) -> list[str]:
    """One line per group: which calls it makes, and whether the host's attention serves them.

    `lse`: torch's attention returns a log-sum-exp here; `need_lse`: the caller asks for one. `only_unserved`:
    only groups that run on torch's attention although there is an `inner`.
    """
    lines = []
    for group in groups:
        served = inner is None or inner.serves(group, need_lse)
        if served and only_unserved:
            continue
        merges = inner.returns_lse if inner is not None and served else lse
        views = is_arithmetic(group.rows, 1) and all(
            is_view(part) for piece in group.pieces for part in parts(group, piece)
        )
        where = "views" if views else "gathered rows"
        count = sum(len(parts(group, piece)) for piece in group.pieces)
        several = (
            f"{count} calls merged by log-sum-exp" if merges else "one call with a bias over copied keys"
        )
        how = several if len(group.pieces) > 1 else ("no call", "one call")[len(group.pieces)]
        who = "the host's attention" if inner is not None and served else "torch's attention"
        lack = (
            ""
            if served
            else f" (the host's returns no log-sum-exp{'' if need_lse else ' and takes no bias'})"
        )
        lines.append(
            f"segment {group.segment}, {len(group.rows) * group.fold} rows: {how} on {where}, {who}{lack}"
        )
    return lines
