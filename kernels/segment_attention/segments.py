"""Query segments and the key sources they attend to, and the argument checks of every call.

Letters: B rows of queries, R rows of keys, H heads, N queries, M keys, D head width, S query segments, T
sources. A row is one entry of the batch.
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
NO_MASK = "a mask of single tokens is not supported, only whole segments are masked"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def whole_numbers(numbers: Iterable, name: str) -> tuple[int, ...]:
    """As ints. Raises TypeError for a fraction, which int() would truncate."""
    numbers = tuple(numbers)
    try:
        return tuple(operator.index(number) for number in numbers)
    except TypeError:
        raise TypeError(f"{name}: expected whole numbers, got {numbers}.") from None


@dataclass(frozen=True)
class Source:
    """Keys `start` to `start + length` of row `rows[b]` of k and v, for query row b; None: of row b."""

    start: int
    length: int
    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        start, length = whole_numbers((self.start, self.length), "Start and length of a source")
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "length", length)
        if self.start < 0 or self.length < 1:
            raise ValueError(
                f"Expected a source with start >= 0 and length >= 1, "
                f"got start {self.start} and length {self.length}."
            )
        if self.rows is not None:
            object.__setattr__(self, "rows", whole_numbers(self.rows, "Rows of a source"))


@dataclass(frozen=True)
class Segments:
    """`queries`: lengths of the consecutive query segments.

    Each attends to every source, with the weights of the call.
    """

    queries: tuple[int, ...]
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", whole_numbers(self.queries, "The query lengths"))
        object.__setattr__(self, "sources", tuple(self.sources))
        for name, count, most in (
            ("query segments", len(self.queries), MAX_SEGMENTS),
            ("sources", len(self.sources), MAX_SOURCES),
        ):
            if not 1 <= count <= most:
                raise ValueError(f"Expected 1 to {most} {name}, got {count}.")
        if min(self.queries) < 1:
            raise ValueError(
                f"Expected at least one query in each segment, got query lengths {self.queries}. Drop "
                "empty ones."
            )

    @classmethod
    def joint(cls, lengths: Sequence[int]) -> Segments:
        """One joint sequence per row; each segment is a source, too: text, image and depth tokens."""
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        return cls(tuple(lengths), tuple(Source(start, length) for start, length in zip(starts, lengths)))

    @classmethod
    def coupled(cls, length: int, partner: Sequence[int]) -> Segments:
        """One sequence per row; source 0 is the row itself, source 1 its partner row."""
        return cls((length,), (Source(0, length), Source(0, length, tuple(partner))))

    def rows(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """(T)(B): the row of k and v per source and query row."""
        return tuple(tuple(range(batch)) if source.rows is None else source.rows for source in self.sources)

    def query_ranges(self) -> list[tuple[int, int]]:
        stops = [sum(self.queries[: index + 1]) for index in range(len(self.queries))]
        return [(stop - length, stop) for stop, length in zip(stops, self.queries)]


def partner_rows(partner: str | Sequence[int] | Tensor, batch: int) -> tuple[int, ...]:
    """The partner of each row: "pairs" (0-1, 2-3, ...), "halves" (b, b + B/2), or B row indices."""
    if isinstance(partner, str):
        if partner not in ("pairs", "halves"):
            raise ValueError(f'Expected partner "pairs", "halves" or {batch} row indices, got {partner!r}.')
        if batch % 2:
            raise ValueError(
                f'Expected an even number of rows for partner "{partner}", got {batch}. '
                f"Pass {batch} row indices instead."
            )
        half = batch // 2
        return tuple(row ^ 1 if partner == "pairs" else (row + half) % batch for row in range(batch))
    rows = partner.tolist() if isinstance(partner, Tensor) else partner
    return whole_numbers(rows if isinstance(rows, Iterable) else [rows], "Partner rows")


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check q (B, H, N, D), k and v (R, H, M, D), of one dtype and device. Raises ValueError or TypeError."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    four = q.dim() == k.dim() == 4
    if not four or k.shape != v.shape or q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3]:
        raise ValueError(f"Expected q (b, h, n, d) and k, v (r, h, m, d), got {shapes}.")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"Expected non-empty tensors, got {shapes}. Skip the call instead.")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"Expected q, k and v of one dtype, got q {q.dtype}, k {k.dtype}, v {v.dtype}. Cast them to one."
        )
    if q.dtype not in DTYPES:
        raise TypeError(f"Expected float16, bfloat16, float32 or float64, got {q.dtype}. Cast q, k and v.")
    if not q.device == k.device == v.device:
        raise ValueError(
            f"Expected q, k and v on one device, got q on {q.device}, k on {k.device}, v on {v.device}. "
            "Move them to one."
        )


def check_segments(q: Tensor, k: Tensor, segments: Segments) -> None:
    """Check that the segments fit the tensors."""
    if sum(segments.queries) != q.shape[2]:
        raise ValueError(
            f"Expected query segments of {q.shape[2]} queries in all, as q has, got {segments.queries}, "
            f"{sum(segments.queries)} in all."
        )
    for number, source in enumerate(segments.sources):
        if source.start + source.length > k.shape[2]:
            raise ValueError(
                f"Source {number}: expected an end of at most {k.shape[2]}, the number of keys, "
                f"got {source.start + source.length}. Shorten the source."
            )
        rows = range(q.shape[0]) if source.rows is None else source.rows
        if len(rows) != q.shape[0]:
            raise ValueError(
                f"Source {number}: expected one row of k per row of q, {q.shape[0]}, got {len(rows)} rows."
            )
        if min(rows) < 0 or max(rows) >= k.shape[0]:
            raise ValueError(
                f"Source {number}: expected rows of k from 0 to {k.shape[0] - 1}, "
                f"got {min(rows)} to {max(rows)}."
            )


def check_scale(scale: float | None, width: int) -> float:
    """The softmax scale; 1/sqrt(D) if None."""
    if scale is None:
        return width**-0.5
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"Expected a positive finite scale, or None for 1/sqrt({width}), got {scale}.")
    return float(scale)


def full_weight(log_weight: Tensor | Sequence | float | None, q: Tensor, segments: Segments) -> Tensor:
    """(S, T), (B, S, T) or (B, H, S, T) log weights -> (1 or B, 1 or H, S, T); float32, or float64 as q."""
    expected = (q.shape[0], q.shape[1], len(segments.queries), len(segments.sources))
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if log_weight is None:
        return torch.zeros(1, 1, *expected[2:], dtype=dtype)
    weight = log_weight if isinstance(log_weight, Tensor) else torch.tensor(log_weight, dtype=dtype)
    if not weight.dtype.is_floating_point:
        raise TypeError(
            f"Expected floating-point log weights, got {weight.dtype}. "
            f"Pass -inf for a masked source; {NO_MASK}."
        )
    if weight.device.type != "cpu" and weight.device != q.device:
        raise ValueError(
            f"Expected log weights on {q.device}, as q, or on the CPU, got {weight.device}. Move them."
        )
    if weight.dim() == 3:
        weight = weight[:, None]
    weight = weight.reshape((1,) * (4 - weight.dim()) + tuple(weight.shape)) if weight.dim() < 4 else weight
    if weight.dim() != 4 or any(got not in (1, size) for got, size in zip(weight.shape, expected)):
        given = tuple(log_weight.shape) if isinstance(log_weight, Tensor) else tuple(weight.shape)
        raise ValueError(
            f"Expected log weights of shape (s, t), (b, s, t) or (b, h, s, t) with b = {expected[0]} rows, "
            f"h = {expected[1]} heads, s = {expected[2]} query segments and t = {expected[3]} sources, "
            f"got {given}. "
            f"Pass one of these; {NO_MASK}."
        )
    return weight.expand(*weight.shape[:2], *expected[2:]).to(dtype)


def check_values(weight: Tensor) -> None:
    """Raise ValueError for NaN or +inf in log weights on the CPU.

    On a GPU they are not read back, and NaN propagates.
    """
    if weight.device.type == "cpu" and not bool((weight < math.inf).all()):
        raise ValueError(
            "Expected finite log weights, or -inf for masked sources, got NaN or +inf. "
            "Pass the logarithm of weights that are finite and not negative."
        )


def on_device(weight: Tensor, device: torch.device) -> Tensor:
    """The log weights on q's device.

    Raises RuntimeError in CUDA graph capture, which would record a read of host memory.
    """
    if weight.device != device and is_capturing():
        raise RuntimeError(
            f"Expected log weights on {device} while a CUDA graph is captured, got {weight.device}. "
            "Move them there before the capture."
        )
    return weight.to(device, non_blocking=True)
