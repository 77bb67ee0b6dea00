"""The composition as a prepared call: the same attention calls as `compose`, with every view, place and merge
worked out beforehand. Bit-equal to `compose`, which serves what is not prepared here: a host's attention,
weights on a device, devices whose attention returns no log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .composition import _Run, _united, plan_of
from .log_sum_exp import attend_with_lse, returns_lse
from .plan import Group, Piece, is_arithmetic, own_range, parts
from .prepared import Run, Weights
from .segments import Segments

Read = Callable[[Tensor], Tensor]  # a tensor as a call takes it -> the view (or gathered rows) of it
View = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides, offset


def prepare_composition(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, weights: Weights, *,
    scale: float, need_lse: bool, merged_heads: bool,
) -> Run | None:  # fmt: skip
    """A prepared call for tensors laid out as these (b, h, n, d); None if only `compose` serves them.

    `merged_heads`: the calls pass (b, n, h * d) and take it back.
    """
    lies_apart = any(tensor.stride(3) != 1 for tensor in (q, k, v))
    if lies_apart or not weights.is_known or q.device.type == "meta":
        return None
    segments, logs = _united(segments, weights.logs)
    groups = plan_of(q, k, v, segments, logs)
    if not returns_lse(q) and (need_lse or any(len(group.pieces) > 1 for group in groups)):
        return None
    made = _Prepared(q, k, v, segments, logs, scale, need_lse, merged_heads)
    if len(groups) == len(segments.queries) == 1 and groups[0].pieces and is_arithmetic(groups[0].rows, 1):
        return made.whole(groups[0])
    run = _Run(q, k, v, segments, logs, scale, need_lse, None)
    keys = own_range(segments, q.shape[0]) if run.is_short(groups) else None
    if keys is not None:
        return made.in_one(*keys)
    if any(not is_arithmetic(group.rows, 1) for group in groups):
        return None
    return made.grouped(groups)


@dataclass(frozen=True)
class _Part:
    """One attention call whose result is merged into the group's first.

    `at`: the rows of the group's output that it covers, None for all; `weight`: its place among the bound
    weights, None for a log weight of 0; `may_hide`: some head does not see its keys.
    """

    q: Read
    k: Read
    v: Read
    at: slice | None
    weight: int | None
    may_hide: bool

    def share(self, lse: Tensor, more_lse: Tensor, bound: list[Tensor]) -> Tensor:
        """The part's share of the softmax (g, h, n, 1); its log weight is added to `more_lse` in place."""
        if self.weight is not None:
            more_lse.add_(bound[self.weight])
        share = (more_lse - lse).sigmoid_()
        if self.may_hide:
            share = torch.where(more_lse == -math.inf, 0.0, share)
        return share.unsqueeze(-1)


@dataclass(eq=False)
class _Prepared:
    q: Tensor
    k: Tensor
    v: Tensor
    segments: Segments
    logs: Tensor
    scale: float
    need_lse: bool
    merged_heads: bool
    selections: list[Read] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shape, self.dtype, self.device = tuple(self.q.shape), self.q.dtype, self.q.device
        b, h, n, d = self.shape
        self.stored = (b, n, h * d) if self.merged_heads else (b, n, h, d)
        self.strides = (n * h * d, d, h * d, 1)  # of the output (b, h, n, d)
        # on a CPU without the choice between backends
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        self.attend = flash if self.device.type == "cpu" else attend_with_lse
        self.lse_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32

    def whole(self, group: Group) -> Run:
        one, stored, fold = self.group(group), self.stored, group.fold
        b, h, n, _ = self.shape
        merged_heads, need_lse = self.merged_heads, self.need_lse
        bind = self.binder()
        self.release()

        def run(q: Tensor, k: Tensor, v: Tensor, weights: Weights):
            out, lse = one(q, k, v, bind(weights), None)
            out = out.transpose(1, 2).reshape(stored).contiguous()
            if not need_lse:
                return out if merged_heads else out.transpose(1, 2), None
            lse = lse if fold == 1 else lse.unflatten(2, (fold, n)).transpose(1, 2)
            return out if merged_heads else out.transpose(1, 2), lse.reshape(b, h, n).contiguous()

        return run

    def grouped(self, groups: Sequence[Group]) -> Run:
        calls = [(self.group(group), self.place(group), self.place_lse(group)) for group in groups]
        stored, dtype, device, lse_dtype = self.stored, self.dtype, self.device, self.lse_dtype
        lse_shape, merged_heads, need_lse = self.shape[:3], self.merged_heads, self.need_lse
        bind = self.binder()
        self.release()

        def run(q: Tensor, k: Tensor, v: Tensor, weights: Weights):
            out, bound = torch.empty(stored, dtype=dtype, device=device), bind(weights)
            whole_lse = torch.empty(lse_shape, dtype=lse_dtype, device=device) if need_lse else None
            for one, place, place_lse in calls:
                _, lse = one(q, k, v, bound, place(out))
                if whole_lse is not None:
                    to = place_lse(whole_lse)
                    to.copy_(lse if to.dim() == 3 else lse.unflatten(2, to.shape[2:]))
            return out if merged_heads else out.transpose(1, 2), whole_lse

        return run

    def in_one(self, start: int, stop: int) -> Run:
        """Short segments of one sequence: one call with a bias, which is made anew from the weights."""
        segments, scale, need_lse, merged_heads = self.segments, self.scale, self.need_lse, self.merged_heads
        sections = len(segments.queries)
        q4, k4, v4 = (_strided(_whole(tensor)) for tensor in (self.q, self.k, self.v))
        self.release()

        def run(q: Tensor, k: Tensor, v: Tensor, weights: Weights):
            logs = weights.logs[:, :, :sections]
            out, lse = _Run(q4(q), k4(k), v4(v), segments, logs, scale, need_lse, None).in_one(start, stop)
            return out.transpose(1, 2).flatten(2) if merged_heads else out, lse

        return run

    def group(self, group: Group) -> Callable:
        """(q, k, v, bound weights, place or None) -> (output, log-sum-exp or None); written to `place`."""
        if not group.pieces:
            return self.unseen(group)
        if len(group.pieces) == 1:
            return self.single(group)
        return self.merged(group)

    def unseen(self, group: Group) -> Callable:
        shape = (len(group.rows), self.shape[1], self.queries_of(group), self.shape[3])
        lse_dtype, device = self.lse_dtype, self.device

        def run(q, k, v, bound, place):
            place.zero_()
            return place, torch.full(shape[:3], -math.inf, dtype=lse_dtype, device=device)

        return run

    def single(self, group: Group) -> Callable:
        piece, scale, need_lse = group.pieces[0], self.scale, self.need_lse
        read_q, (read_k, read_v) = self.queries(group), self.keys(piece)
        weight, hidden = self.weight(group, piece), self.hidden(group)
        attend, with_lse = F.scaled_dot_product_attention, self.attend

        def run(q, k, v, bound, place):
            if need_lse:
                out, lse = with_lse(read_q(q), read_k(k), read_v(v), scale=scale)
                lse = lse if weight is None else lse + bound[weight]
            else:
                out, lse = attend(read_q(q), read_k(k), read_v(v), scale=scale), None
            if hidden is not None:
                out.masked_fill_(hidden, 0.0)
            if place is not None:
                place.copy_(out if place.dim() == 4 else _unfold(out, place))
            return out, lse

        return run

    def merged(self, group: Group) -> Callable:
        """The first piece whose keys are a view, then the others merged in place, as `_Run.merged`."""
        first, *others = sorted(group.pieces, key=lambda piece: not is_arithmetic(piece.rows))
        read_q, (read_k, read_v) = self.queries(group), self.keys(first)
        own, hidden = self.weight(group, first), self.hidden(group)
        scale, need_lse = self.scale, self.need_lse
        todo = [self.part(group, part) for piece in others for part in parts(group, piece)]
        *before, last = todo
        attend, merge = self.attend, self.merge()
        # the last part of all rows is merged into its place at once, and then nothing reads a log-sum-exp
        straight = hidden is None and last.at is None and group.fold == 1 and self.is_exact and not need_lse

        def run(q, k, v, bound, place):
            asked = read_q(q)
            out, lse = attend(asked, read_k(k), read_v(v), scale=scale)
            lse = lse if own is None else lse + bound[own]
            for part in before if straight else todo:
                mine = asked if part.at is None else part.q(q)
                more, more_lse = attend(mine, part.k(k), part.v(v), scale=scale)
                merge(part, out, lse, more, more_lse, bound)
            if straight:
                more, more_lse = attend(asked, last.k(k), last.v(v), scale=scale)
                share = last.share(lse, more_lse, bound)
                return torch.lerp(out, more, share, out=out if place is None else place), None
            if hidden is not None:
                out.masked_fill_(hidden, 0.0)
            if place is not None:
                place.copy_(out if place.dim() == 4 else _unfold(out, place))
            return out, lse

        return run

    @property
    def is_exact(self) -> bool:
        """Whether merges need no higher precision than the output's."""
        return self.dtype in (torch.float32, torch.float64)

    def merge(self) -> Callable:
        is_exact = self.is_exact

        def merge(part: _Part, out, lse, more, more_lse, bound) -> None:
            """Merge a part into the rows of `out` and `lse` that it covers, in place."""
            to, to_lse = (out, lse) if part.at is None else (out[part.at], lse[part.at])
            share = part.share(to_lse, more_lse, bound)
            if is_exact:
                to.lerp_(more, share)
            else:
                to.copy_(torch.lerp(to.float(), more.float(), share.float()))
            to_lse.copy_(torch.logaddexp(to_lse, more_lse))

        return merge

    def part(self, group: Group, part: Group) -> _Part:
        piece, at = part.pieces[0], [group.rows.index(row) for row in part.rows]
        covered = None
        if len(at) < len(group.rows):
            covered = slice(at[0], at[-1] + 1, at[1] - at[0] if len(at) > 1 else 1)
        values = self.logs[:, :, part.segment, piece.slots[0]]
        may_hide = bool((values == -math.inf).any())
        return _Part(self.queries(part), *self.keys(piece), covered, self.weight(part, piece), may_hide)

    def queries_of(self, group: Group) -> int:
        return group.fold * self.segments.queries[group.segment]

    def queries(self, group: Group) -> Read:
        start, _ = self.segments.query_ranges()[group.segment]
        return _strided(_rows(self.q, group.rows, start, self.queries_of(group)))

    def keys(self, piece: Piece) -> tuple[Read, Read]:
        if is_arithmetic(piece.rows):
            return tuple(
                _strided(_rows(tensor, piece.rows, piece.start, piece.length)) for tensor in (self.k, self.v)
            )  # type: ignore[return-value]
        index, stop = torch.tensor(piece.rows, device=self.device), piece.start + piece.length
        k4, v4 = (_strided(_whole(tensor)) for tensor in (self.k, self.v))
        return tuple(
            lambda tensor, whole=whole: whole(tensor)[index][:, :, piece.start : stop] for whole in (k4, v4)
        )  # type: ignore[return-value]

    def place(self, group: Group) -> Read:
        """The group's view of the output; with folded rows (g, fold, h, n, d)."""
        start, _ = self.segments.query_ranges()[group.segment]
        (_, h, n, d), (row, *rest) = self.shape, self.strides
        step = group.rows[1] - group.rows[0] if len(group.rows) > 1 else group.fold
        offset = group.rows[0] * row + start * rest[1]
        if group.fold == 1:
            shape = (len(group.rows), h, self.segments.queries[group.segment], d)
            return _strided((shape, (step * row, *rest), offset))
        return _strided(((len(group.rows), group.fold, h, n, d), (step * row, row, *rest), offset))

    def place_lse(self, group: Group) -> Read:
        start, _ = self.segments.query_ranges()[group.segment]
        _, h, n, _ = self.shape
        step = group.rows[1] - group.rows[0] if len(group.rows) > 1 else group.fold
        shape, strides = (self.segments.queries[group.segment],), (n, 1)
        offset = group.rows[0] * h * n + start
        if group.fold == 1:
            return _strided(((len(group.rows), h, *shape), (step * h * n, *strides), offset))
        # (g, h, fold, n): the log-sum-exp of folded rows is (g, h, fold * n)
        return _strided(((len(group.rows), h, group.fold, n), (step * h * n, n, h * n, 1), offset))

    def weight(self, group: Group, piece: Piece) -> int | None:
        """The number of a selection of the weights (1 or g, 1 or h, 1), None if all of it is 0."""
        segment, slot = group.segment, piece.slots[0]
        values = self.logs[:, :, segment, slot]
        if bool((values == 0).all()):
            return None
        rows, heads, *_ = self.logs.shape
        if rows == 1 or is_arithmetic(group.rows, 1):
            step = group.rows[1] - group.rows[0] if len(group.rows) > 1 else 1
            first, count = (0, 1) if rows == 1 else (group.rows[0], len(group.rows))
            # `logs` may be a part of the sections of the call's weights, whose strides it has
            row, head = self.logs.stride(0), self.logs.stride(1)
            offset = first * row + segment * self.logs.stride(2) + slot * self.logs.stride(3)
            self.selections.append(_strided(((count, heads, 1), (step * row, head, 1), offset)))
        else:
            index = torch.tensor(group.rows, device=self.device)
            self.selections.append(lambda logs: logs[:, :, segment, slot][index][..., None])
        return len(self.selections) - 1

    def hidden(self, group: Group) -> Tensor | None:
        """A mask of the heads that see none of the group's sources, if there are any."""
        if self.logs.shape[1] == 1:
            return None
        run = _Run(self.q, self.k, self.v, self.segments, self.logs, self.scale, self.need_lse, None)
        weights = [run.weight_of(self.logs, group, piece) for piece in group.pieces]
        unseen = torch.stack(weights).eq(-math.inf).all(0)
        return unseen.to(self.device)[..., None] if bool(unseen.any()) else None

    def binder(self) -> Callable[[Weights], list[Tensor]]:
        """The selections of a call's weights on its device, kept beside the weights."""
        selections, device = self.selections, self.device

        def bind(weights: Weights) -> list[Tensor]:
            if not selections:
                return []
            bound = weights.bound.get(bind)
            if bound is None:
                near = weights.on(device)
                bound = weights.bound[bind] = [select(near) for select in selections]
            return bound  # type: ignore[return-value]

        return bind

    def release(self) -> None:
        """A prepared call holds no tensors of the call it was made from."""
        del self.q, self.k, self.v


def _rows(tensor: Tensor, rows: Sequence[int], start: int, length: int) -> View:
    """Rows in arithmetic sequence, `length` tokens of each from `start` on, also into those that follow."""
    step = rows[1] - rows[0] if len(rows) > 1 else 0
    row, head, token, last = tensor.stride()
    shape = (len(rows), tensor.shape[1], length, tensor.shape[3])
    return shape, (step * row, head, token, last), rows[0] * row + start * token


def _whole(tensor: Tensor) -> View:
    return tuple(tensor.shape), tensor.stride(), 0


def _strided(view: View) -> Read:
    shape, strides, offset = view
    return lambda tensor: tensor.as_strided(shape, strides, tensor.storage_offset() + offset)


def _unfold(out: Tensor, place: Tensor) -> Tensor:
    """(g, h, fold * n, d) as (g, fold, h, n, d)."""
    return out.unflatten(2, (place.shape[1], place.shape[3])).transpose(1, 2)
