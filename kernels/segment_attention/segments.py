"""Who sees whom: query segments, the key sources they read, and the checks every call passes before anything runs.

Letters: B rows of queries, R rows of keys, H heads, N queries, M keys, D head width, S query segments, T sources.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dispatch import is_capturing

MAX_SEGMENTS = 8
MAX_SOURCES = 8
NO_MASK = "a mask of single tokens is not taken, only whole segments are seen or not"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def whole_numbers(numbers: Iterable, name: str) -> tuple[int, ...]:
    """As int. Raises TypeError for a fraction, which int() would cut."""
    numbers = tuple(numbers)
    try:
        return tuple(operator.index(number) for number in numbers)
    except TypeError:
        raise TypeError(f"{name} are {numbers}; give whole numbers.") from None


@dataclass(frozen=True)
class Source:
    """Keys `start` to `start + length` of one row of k and v; `rows[b]` is that row for query row b, None means row b itself."""

    start: int
    length: int
    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        start, length = whole_numbers((self.start, self.length), "Start and length of a source")
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "length", length)
        if self.start < 0 or self.length < 1:
            raise ValueError(f"A source got start {self.start} and length {self.length}; start at 0 or later and take at least one key.")
        if self.rows is not None:
            object.__setattr__(self, "rows", whole_numbers(self.rows, "The rows of a source"))


@dataclass(frozen=True)
class Segments:
    """`queries`: the lengths of the consecutive query segments. Every query may see every source, with the weight the call gives."""

    queries: tuple[int, ...]
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", whole_numbers(self.queries, "The query lengths"))
        object.__setattr__(self, "sources", tuple(self.sources))
        for name, count, most in (("query segments", len(self.queries), MAX_SEGMENTS), ("sources", len(self.sources), MAX_SOURCES)):
            if not 1 <= count <= most:
                raise ValueError(f"Segments got {count} {name}; give 1 to {most}.")
        if min(self.queries) < 1:
            raise ValueError(f"Segments got query lengths {self.queries}; give each segment at least one query.")

    @classmethod
    def joint(cls, lengths: Sequence[int]) -> Segments:
        """One sequence per row, cut in pieces that are queries and keys alike: text, image and depth tokens."""
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        return cls(tuple(lengths), tuple(Source(start, length) for start, length in zip(starts, lengths)))

    @classmethod
    def coupled(cls, length: int, partner: Sequence[int]) -> Segments:
        """One sequence per row; source 0 is the own row, source 1 the partner's."""
        return cls((length,), (Source(0, length), Source(0, length, tuple(partner))))

    def rows(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """(T)(B): the row of k and v for every source and query row."""
        return tuple(tuple(range(batch)) if source.rows is None else source.rows for source in self.sources)

    def query_ranges(self) -> list[tuple[int, int]]:
        stops = [sum(self.queries[: index + 1]) for index in range(len(self.queries))]
        return [(stop - length, stop) for stop, length in zip(stops, self.queries)]


def partner_rows(partner: str | Sequence[int] | Tensor, batch: int) -> tuple[int, ...]:
    """ "pairs": 0-1, 2-3, ...; "halves": row b and row b + B/2; or one row number for each row."""
    if isinstance(partner, str):
        if partner not in ("pairs", "halves"):
            raise ValueError(f'The partner is {partner!r}; give "pairs", "halves" or {batch} row numbers.')
        if batch % 2:
            raise ValueError(f'Partner "{partner}" needs an even number of rows, got {batch}; give {batch} row numbers instead.')
        half = batch // 2
        return tuple(row ^ 1 for row in range(batch)) if partner == "pairs" else tuple((row + half) % batch for row in range(batch))
    rows = partner.tolist() if isinstance(partner, Tensor) else partner
    return whole_numbers(rows if isinstance(rows, Iterable) else [rows], "The partner rows")


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """q (B, H, N, D), k and v (R, H, M, D), of one dtype and device. Raises ValueError or TypeError with one sentence."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3]:
        raise ValueError(f"Segment attention got {shapes}; give q (rows, heads, queries, width) and k, v (rows, heads, keys, width).")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"Segment attention got an empty tensor: {shapes}; leave the call out instead.")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"Segment attention got q {q.dtype}, k {k.dtype}, v {v.dtype}; cast them to one dtype.")
    if q.dtype not in DTYPES:
        raise TypeError(f"Segment attention got {q.dtype}; cast to one of float16, bfloat16, float32, float64.")
    if not q.device == k.device == v.device:
        raise ValueError(f"Segment attention got q on {q.device}, k on {k.device}, v on {v.device}; move them to one device.")


def check_segments(q: Tensor, k: Tensor, segments: Segments) -> None:
    """The segments fit the tensors."""
    if sum(segments.queries) != q.shape[2]:
        raise ValueError(f"The query segments {segments.queries} hold {sum(segments.queries)} queries, q has {q.shape[2]}; cut q whole.")
    for number, source in enumerate(segments.sources):
        if source.start + source.length > k.shape[2]:
            raise ValueError(f"Source {number} ends at key {source.start + source.length}, k has {k.shape[2]}; shorten the source.")
        rows = range(q.shape[0]) if source.rows is None else source.rows
        if len(rows) != q.shape[0]:
            raise ValueError(f"Source {number} names {len(rows)} rows, q has {q.shape[0]}; give one row of k for each row of q.")
        if min(rows) < 0 or max(rows) >= k.shape[0]:
            raise ValueError(f"Source {number} names rows {min(rows)} to {max(rows)}, k has rows 0 to {k.shape[0] - 1}; name those.")


def check_scale(scale: float | None, width: int) -> float:
    """1/sqrt(D) unless given."""
    if scale is None:
        return width**-0.5
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"The scale is {scale}; give a positive finite number, or None for 1/sqrt({width}).")
    return float(scale)


def full_weight(log_weight: Tensor | Sequence | float | None, q: Tensor, segments: Segments) -> Tensor:
    """Log weights as (1 or B, 1 or H, S, T) in float32 (float64 beside float64). Given as (S, T), (B, S, T) or (B, H, S, T)."""
    wanted = (q.shape[0], q.shape[1], len(segments.queries), len(segments.sources))
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if log_weight is None:
        return torch.zeros(1, 1, *wanted[2:], dtype=dtype)
    weight = log_weight if isinstance(log_weight, Tensor) else torch.tensor(log_weight, dtype=dtype)
    if not weight.dtype.is_floating_point:
        raise TypeError(f"The log weights are {weight.dtype}; give floating-point numbers, and -inf for what is not seen: {NO_MASK}.")
    if weight.device.type != "cpu" and weight.device != q.device:
        raise ValueError(f"The log weights are on {weight.device}, q is on {q.device}; put them there or on the CPU.")
    if weight.dim() == 3:
        weight = weight[:, None]
    weight = weight.reshape((1,) * (4 - weight.dim()) + tuple(weight.shape)) if weight.dim() < 4 else weight
    if weight.dim() != 4 or any(got not in (1, want) for got, want in zip(weight.shape, wanted)):
        given = tuple(log_weight.shape) if isinstance(log_weight, Tensor) else tuple(weight.shape)
        raise ValueError(
            f"The log weights have shape {given}; with {wanted[0]} rows, {wanted[1]} heads, {wanted[2]} query segments and {wanted[3]} "
            f"sources give (segments, sources), (rows, segments, sources) or (rows, heads, segments, sources); {NO_MASK}."
        )
    return weight.expand(*weight.shape[:2], *wanted[2:]).to(dtype)


def check_values(weight: Tensor) -> None:
    """No NaN and no +inf among log weights whose values the host can read; a GPU's are not waited for, there NaN in is NaN out."""
    if weight.device.type == "cpu" and not bool((weight < math.inf).all()):
        raise ValueError("The log weights hold NaN or +inf; give finite numbers, or -inf for unseen keys (a weight is never negative).")


def on_device(weight: Tensor, device: torch.device) -> Tensor:
    """The log weights beside the queries. Raises RuntimeError while a CUDA graph is captured, whose replays would read the host's again."""
    if weight.device != device and is_capturing():
        raise RuntimeError(f"The log weights are on {weight.device} while a CUDA graph is captured on {device}; put them there before.")
    return weight.to(device, non_blocking=True)
