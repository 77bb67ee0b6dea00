"""Plans the attention calls of a composition: rows that see the same sources share a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .segments import Segments

# nested (B)(S)(T): a tuple of one number per head, or of one for all; -inf for weight zero
Weights = tuple
MOST_RUNS = 3  # beyond this many calls on views, one call on gathered rows is cheaper


@dataclass(frozen=True)
class Piece:
    """Keys of one call: for the group's i-th batch entry, keys `start` to `start + length` of row `rows[i]`.

    A range may extend into the rows that follow in memory. `slots`: the sources it joins, all of one weight.
    """

    slots: tuple[int, ...]
    rows: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True)
class Group:
    """One query segment of some rows.

    `fold` > 1: each entry of `rows` stands for that many adjacent rows, whose queries are viewed as one
    sequence.
    """

    segment: int
    rows: tuple[int, ...]
    pieces: tuple[Piece, ...]
    fold: int = 1


@lru_cache(maxsize=256)
def make_plan(
    segments: Segments, batch: int, keys: int, weights: Weights | None, joinable: bool, foldable: bool
) -> tuple[Group, ...]:
    """The calls, one group for rows that see the same sources, the same of them at equal weights.

    `weights` None: on the device, so every source is a call. `joinable`: the rows of k and v are contiguous
    in memory; `foldable`: those of q. Rows whose weights are all -inf get a group without pieces.
    """
    groups: list[Group] = []
    for segment in range(len(segments.queries)):
        seen: dict[tuple[int, ...], list[int]] = {}
        for row in range(batch):
            alike = (
                _alike(weights[row][segment]) if weights is not None else tuple(range(len(segments.sources)))
            )
            seen.setdefault(alike, []).append(row)
        for alike, rows in seen.items():
            keyed = {slot: first for slot, first in enumerate(alike) if first >= 0}
            group = _join(segments, segment, rows, keyed, keys) if joinable else None
            if group is not None and foldable and weights is not None and len(segments.queries) == 1:
                group = _fold(group, [weights[row][segment] for row in rows])
            split = _split(group) if group is not None else None
            groups += split or _split_or_gather(_separate(segments, segment, rows, list(keyed)))
    return tuple(groups)


def _alike(weights: tuple) -> tuple[int, ...]:
    """Per source the index of the first source of equal weight, -1 if no head sees it."""
    return tuple(-1 if max(weight) == -math.inf else weights.index(weight) for weight in weights)


def is_arithmetic(numbers: Sequence[int], least_step: int = 0) -> bool:
    """Whether the steps are equal and at least `least_step`, so that a strided view selects the rows."""
    steps = {after - before for before, after in zip(numbers, numbers[1:])}
    return len(steps) <= 1 and min(steps, default=least_step) >= least_step


def _separate(segments: Segments, segment: int, rows: Sequence[int], active: Sequence[int]) -> Group:
    pieces = []
    for slot in active:
        source = segments.sources[slot]
        pieces.append(
            Piece(
                (slot,),
                tuple(source.rows[r] if source.rows else r for r in rows),
                source.start,
                source.length,
            )
        )
    return Group(segment, tuple(rows), tuple(pieces))


def _join(segments: Segments, segment: int, rows: Sequence[int], keyed: dict, keys: int) -> Group | None:
    """Join sources of equal weight that are adjacent in memory: a softmax is invariant to their order."""
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
    return Piece(
        slots,
        tuple(start // keys for start in starts),
        starts[0] % keys,
        sum(piece.length for piece in pieces),
    )


def _fold(group: Group, weights: Sequence[tuple]) -> Group:
    """Fold adjacent rows that read the same keys at the same weights into one longer query sequence."""
    same = [
        (weights[index], *(piece.rows[index] for piece in group.pieces)) for index in range(len(group.rows))
    ]
    for fold in range(len(group.rows), 1, -1):
        if len(group.rows) % fold:
            continue
        entries = [(index, index - index % fold) for index in range(len(group.rows))]
        if all(
            group.rows[i] - group.rows[first] == i - first and same[i] == same[first] for i, first in entries
        ):
            pieces = tuple(
                Piece(piece.slots, piece.rows[::fold], piece.start, piece.length) for piece in group.pieces
            )
            return Group(group.segment, group.rows[::fold], pieces, fold)
    return group


def _pick(group: Group, picked: Sequence[int]) -> Group:
    pieces = tuple(Piece(p.slots, tuple(p.rows[i] for i in picked), p.start, p.length) for p in group.pieces)
    return Group(group.segment, tuple(group.rows[i] for i in picked), pieces, group.fold)


def is_view(group: Group) -> bool:
    return is_arithmetic(group.rows, 1) and all(is_arithmetic(piece.rows) for piece in group.pieces)


def parts(group: Group, piece: Piece) -> list[Group]:
    """The calls of one piece: on views of its keys, or one on gathered keys beyond MOST_RUNS views."""
    alone = Group(group.segment, group.rows, (piece,), group.fold)
    return _split(alone) or [alone]


def _split(group: Group) -> list[Group] | None:
    """The group as at most MOST_RUNS groups on views, or None.

    Beside a piece whose keys are one view the other pieces may take several calls.
    """
    count = len(group.rows)
    if is_view(group):
        return [group]
    if (
        len(group.pieces) > 1
        and is_arithmetic(group.rows, 1)
        and any(is_arithmetic(piece.rows) for piece in group.pieces)
    ):
        if all(is_view(part) for piece in group.pieces for part in parts(group, piece)):
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


def own_range(segments: Segments, batch: int) -> tuple[int, int] | None:
    """First and last-plus-one key if the sources partition one range of every row's own keys, else None."""
    if any(source.rows not in (None, tuple(range(batch))) for source in segments.sources):
        return None
    ranges = sorted((source.start, source.start + source.length) for source in segments.sources)
    return (
        (ranges[0][0], ranges[-1][1])
        if all(stop == start for (_, stop), (start, _) in zip(ranges, ranges[1:]))
        else None
    )


def _split_or_gather(group: Group) -> list[Group]:
    return _split(group) or [group]
