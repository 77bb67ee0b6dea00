"""Calls that are left to torch's attention although the kernel takes them. The only place to change when a card was timed.

`spatialweave bench kernels`, in an installed clone of the repository, times "ours, triton" beside "ours, composition" for every shape,
with the weights on the CPU (mode eager) and on the GPU (mode graph). Where the second is faster, a row belongs here; where it is not,
none does. A forced backend asks nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ANY_LENGTH = range(1, 1 << 31)


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
    Row(9, range(96, 161), "by the compiled code, not timed"),
)


def preferred(capability: tuple[int, int], width: int, queries: int, weights: str) -> str | None:
    """Why torch's attention is preferred for this call, or None. weights: the type of the device they are on."""
    found = next((row for row in LEFT_TO_TORCH if row.holds(capability, width, queries, weights)), None)
    return f"torch's attention is preferred on {found}" if found else None
