"""Which attention calls a composition makes: rows that see the same streams together, copies only where no view serves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .segments import Segments

Weights = tuple  # nested (B)(S)(T): a tuple of one log weight per head, or of one for all heads
MOST_RUNS = 3  # beyond this many calls on views, one call on gathered rows is cheaper


@dataclass(frozen=True)
class Piece:
    """Keys of one call: for the group's i-th batch entry, keys `start` to `start + length` of row `rows[i]`.

    A range may go on into the rows that follow in memory. `slots` are the sources it joins, all of one weight.
    """

    slots: tuple[int, ...]
    rows: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True)
class Group:
    """One query segment of some rows. `fold` > 1: each entry of `rows` stands for that many adjacent rows, read as one sequence."""

    segment: int
    rows: tuple[int, ...]
    pieces: tuple[Piece, ...]
    fold: int = 1


@lru_cache(maxsize=256)
def make_plan(segments: Segments, batch: int, keys: int, weights: Weights | None, joinable: bool, foldable: bool) -> tuple[Group, ...]:
    """The calls. `weights` None: known only to the device, so every source is a call. `joinable`: rows of k, v follow each other in memory.

    `foldable`: the same of q. Rows with every weight -inf get a group without pieces.
    """
    groups: list[Group] = []
    for segment in range(len(segments.queries)):
        seen: dict[tuple, list[int]] = {}
        for row in range(batch):
            seen.setdefault(weights[row][segment] if weights is not None else (), []).append(row)
        for signature, rows in seen.items():
            active = [slot for slot in range(len(segments.sources)) if weights is None or max(signature[slot]) > -math.inf]
            keyed = {slot: signature[slot] if weights is not None else slot for slot in active}
            group = _join(segments, segment, rows, keyed, keys) if joinable else None
            if group is not None and foldable and len(segments.queries) == 1:
                group = _fold(group)
            split = _split(group) if group is not None else None
            groups += split or _split_or_gather(_separate(segments, segment, rows, active))
    return tuple(groups)


def is_arithmetic(numbers: Sequence[int], least_step: int = 0) -> bool:
    """Equal steps of at least `least_step`: a strided view reads them."""
    steps = {after - before for before, after in zip(numbers, numbers[1:])}
    return len(steps) <= 1 and min(steps, default=least_step) >= least_step


def _separate(segments: Segments, segment: int, rows: Sequence[int], active: Sequence[int]) -> Group:
    pieces = []
    for slot in active:
        source = segments.sources[slot]
        pieces.append(Piece((slot,), tuple(source.rows[r] if source.rows else r for r in rows), source.start, source.length))
    return Group(segment, tuple(rows), tuple(pieces))


def _join(segments: Segments, segment: int, rows: Sequence[int], keyed: dict, keys: int) -> Group | None:
    """Sources of equal weight that lie side by side in memory become one piece; order is free in a softmax. None if nothing joins."""
    separate = _separate(segments, segment, rows, list(keyed))
    by_weight: dict[object, list[Piece]] = {}
    for piece in separate.pieces:
        by_weight.setdefault(keyed[piece.slots[0]], []).append(piece)
    pieces: list[Piece] = []
    for same in by_weight.values():
        joined = _side_by_side(same, keys) if len(same) > 1 else None
        pieces += [joined] if joined else same
    return Group(segment, tuple(rows), tuple(pieces))


def _side_by_side(pieces: Sequence[Piece], keys: int) -> Piece | None:
    starts = []
    for index in range(len(pieces[0].rows)):
        ranges = sorted((piece.rows[index] * keys + piece.start, piece.length) for piece in pieces)
        if any(start + length != after for (start, length), (after, _) in zip(ranges, ranges[1:])):
            return None
        starts.append(ranges[0][0])
    if len({start % keys for start in starts}) > 1:
        return None
    slots = tuple(slot for piece in pieces for slot in piece.slots)
    return Piece(slots, tuple(start // keys for start in starts), starts[0] % keys, sum(piece.length for piece in pieces))


def _fold(group: Group) -> Group:
    """Adjacent rows that read the same keys become one longer sequence of queries."""
    same = [tuple(piece.rows[index] for piece in group.pieces) for index in range(len(group.rows))]
    for fold in range(len(group.rows), 1, -1):
        if len(group.rows) % fold:
            continue
        entries = [(index, index - index % fold) for index in range(len(group.rows))]
        if all(group.rows[i] - group.rows[first] == i - first and same[i] == same[first] for i, first in entries):
            pieces = tuple(Piece(piece.slots, piece.rows[::fold], piece.start, piece.length) for piece in group.pieces)
            return Group(group.segment, group.rows[::fold], pieces, fold)
    return group


def _pick(group: Group, picked: Sequence[int]) -> Group:
    pieces = tuple(Piece(p.slots, tuple(p.rows[i] for i in picked), p.start, p.length) for p in group.pieces)
    return Group(group.segment, tuple(group.rows[i] for i in picked), pieces, group.fold)


def is_view(group: Group) -> bool:
    return is_arithmetic(group.rows, 1) and all(is_arithmetic(piece.rows) for piece in group.pieces)


def _split(group: Group) -> list[Group] | None:
    """The group as few groups that views serve, or None."""
    count = len(group.rows)
    if is_view(group):
        return [group]
    orders = (list(range(count)), [*range(0, count, 2), *range(1, count, 2)])
    best = min((_runs(group, order) for order in orders), key=len)
    return best if len(best) <= MOST_RUNS else None


def _runs(group: Group, order: Sequence[int]) -> list[Group]:
    runs: list[list[int]] = []
    for index in order:
        if runs and is_view(_pick(group, [*runs[-1], index])):
            runs[-1].append(index)
        else:
            runs.append([index])
    return [_pick(group, run) for run in runs]


def _split_or_gather(group: Group) -> list[Group]:
    return _split(group) or [group]
