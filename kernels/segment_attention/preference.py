"""Calls that are left to torch's attention although the kernel takes them. The only place to change when a card was timed.

`spatialweave bench kernels`, in an installed clone of the repository, times "ours, triton" beside "ours, composition" for every shape,
with the weights on the CPU (mode eager) and on the GPU (mode graph). Where the second is faster, a row belongs here; where it is not,
none does. A forced backend asks nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ANY_LENGTH = range(1, 1 << 31)
LONG = range(2048, 1 << 31)  # between the 1024 and 4096 queries that were timed


@dataclass(frozen=True)
class Row:
    """For one major compute capability: the head widths, the number of queries of a row, where the weights lie, and how it is known.

    Weights on the CPU are known before launch, so that the composition spares what it can; on the GPU it cannot.
    """

    major: int
    widths: range
    why: str
    queries: range = ANY_LENGTH
    weights: Literal["cpu", "gpu", "anywhere"] = "anywhere"

    def holds(self, capability: tuple[int, int], width: int, queries: int, weights: str) -> bool:
        here = capability[0] == self.major and width in self.widths and queries in self.queries
        return here and self.weights in ("anywhere", "cpu" if weights == "cpu" else "gpu")

    def __str__(self) -> str:
        length = "" if self.queries == ANY_LENGTH else f", {self.queries[0]} to {self.queries[-1]} queries"
        where = "" if self.weights == "anywhere" else f", weights on the {self.weights.upper()}"
        return f"sm_{self.major}x at head widths {self.widths[0]} to {self.widths[-1]}{length}{where} ({self.why})"


LEFT_TO_TORCH: tuple[Row, ...] = (
    # major, widths, why[, queries=range(from, to), weights="cpu" or "gpu"]
    # an H200, torch 2.11, Triton 3.6 (docs/kernels_h200.json): torch's attention twice and a merge against the kernel, replays of a graph.
    # At width 64 the kernel is the faster: 0.80 ms against 0.97 at 4096 queries, 0.12 against 0.26 at 1024.
    Row(9, range(16, 64), "0.75 ms against 1.06 at 4096 queries of width 40, mixed weights", queries=LONG),
    Row(9, range(65, 96), "1.98 ms against 3.79 at 4096 queries of width 72, mixed weights", queries=LONG),
    # a joint sequence of 8704 is the kernel's, 2.05 ms against 2.32
    Row(9, range(96, 161), "3.30 ms against 3.48 at 4096 queries of width 128, mixed weights", queries=range(1, 8192), weights="cpu"),
)


def preferred(capability: tuple[int, int], width: int, queries: int, weights: str) -> str | None:
    """Why torch's attention is preferred for this call, or None. weights: the type of the device they are on."""
    found = next((row for row in LEFT_TO_TORCH if row.holds(capability, width, queries, weights)), None)
    return f"torch's attention is preferred on {found}" if found else None
