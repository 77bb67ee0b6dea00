"""Calls that run on torch's attention although the kernel supports them; edit this table after timing a GPU.

`spatialweave bench kernels`, in an installed clone of the repository, times "ours, triton" and "ours,
composition" on every shape, with the weights on the CPU (mode eager) and on the GPU (mode graph). A row
belongs here where the second is faster, and only there. A forced backend ignores the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ANY_LENGTH = range(1, 1 << 31)
LONG = range(2048, 1 << 31)  # between the 1024 and 4096 queries that were timed


@dataclass(frozen=True)
class Row:
    """For one compute capability: head widths, number of queries, device of the weights, measurement.

    With weights on the CPU the composition skips zeros and joins equal ones; with weights on the GPU it
    cannot.
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
        widths = f"head widths {self.widths[0]} to {self.widths[-1]}"
        return f"sm_{self.major}x at {widths}{length}{where} ({self.why})"


LEFT_TO_TORCH: tuple[Row, ...] = (
    # major, widths, why[, queries=range(from, to), weights="cpu" or "gpu"]
    # H200, torch 2.11, Triton 3.6 (docs/kernels_h200.json), graph replays: two calls of torch's attention and
    # a merge against the kernel. At width 64 the kernel is the faster: 0.80 ms against 0.97 at 4096 queries,
    # 0.12 against 0.26 at 1024.
    Row(9, range(16, 64), "0.75 ms against 1.06 at 4096 queries of width 40, mixed weights", queries=LONG),
    Row(9, range(65, 96), "1.98 ms against 3.79 at 4096 queries of width 72, mixed weights", queries=LONG),
    # a joint sequence of 8704 is the kernel's, 2.05 ms against 2.32
    Row(
        9,
        range(96, 161),
        "3.30 ms against 3.48 at 4096 queries of width 128, mixed weights",
        queries=range(1, 8192),
        weights="cpu",
    ),
)


def preferred(capability: tuple[int, int], width: int, queries: int, weights: str) -> str | None:
    """Why torch's attention is preferred for this call, or None. weights: the type of their device."""
    found = next((row for row in LEFT_TO_TORCH if row.holds(capability, width, queries, weights)), None)
    return f"torch's attention is preferred on {found}" if found else None
