"""Performance goals of the attention op, as time ratios within one run, and whether a run reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .results import Timing
from .rivals import FLEX, MASKED, ONE_STREAM, TWO_CALLS

Size = tuple[int, int, int, int]  # b, h, n, d
COMPOSED = "best composition"  # the fastest of our own and of those that one would write


@dataclass(frozen=True)
class Goal:
    """A lower bound on `rival`'s time over ours at one weight, for the shapes that `holds` accepts.

    `over`: compare our own time at that other weight instead of a rival's.
    """

    rival: str
    weight: str
    must: float
    stretch: float
    holds: Callable[[Size], bool] = lambda size: True
    over: str | None = None


@dataclass(frozen=True)
class Verdict:
    shape: str
    mode: str
    rival: str
    weight: str
    ratio: float
    must: float
    stretch: float

    def __str__(self) -> str:
        reached = "the stretch" if self.ratio >= self.stretch else "yes" if self.ratio >= self.must else "NO"
        what = f"{self.shape}, {self.mode}, weight {self.weight}: {self.rival} over ours"
        return f"goal {what} {self.ratio:.2f}, must {self.must:.2f}, stretch {self.stretch:.2f}: {reached}"


def at(*widths: int, least: int = 0, most: int = 1 << 30) -> Callable[[Size], bool]:
    return lambda size: size[3] in widths and least <= size[2] <= most


SAVED = (  # with either kind of device
    Goal(ONE_STREAM, "zero", 1 / 1.02, 1.0),
    Goal("ours, no row at zero", "half zero", 1 / 0.78, 1 / 0.76, over="mixed"),
)
ON_A_GPU = (
    *SAVED,
    Goal(MASKED, "mixed", 1.5, 2.0),
    Goal(f"{MASKED}, efficient_attention", "mixed", 3.0, 4.0),
    Goal(COMPOSED, "mixed", 1.25, 1.5, at(64, least=2304)),
    Goal(COMPOSED, "mixed", 1.6, 2.2, at(64, most=1024)),
    Goal(COMPOSED, "mixed", 1.4, 1.8, at(40, 72, 80)),
    # never slower, which dispatch brings about; 2 % for the noise of a tie
    Goal(COMPOSED, "mixed", 0.98, 1.1, at(128)),
    Goal(FLEX, "mixed", 1.4, 1.8, at(64)),
    Goal(FLEX, "mixed", 1.05, 1.6, at(128)),
    Goal(FLEX, "mixed", 2.0, 3.0, at(72)),
)
ON_A_CPU = (
    *SAVED,
    *(Goal(TWO_CALLS, weight, 1 / 0.95, 1 / 0.85) for weight in ("mixed", "one")),
)


def judge(times: Iterable[Timing]) -> list[Verdict]:
    """Every goal on every shape that has the times for it."""
    found: dict[tuple[str, Size, str], dict[tuple[str, str], float]] = {}
    for timing in times:
        found.setdefault((timing.shape, timing.size, timing.mode), {})[timing.weight, timing.rival] = (
            timing.median
        )
    verdicts = []
    for (shape, size, mode), medians in found.items():
        on_a_gpu = any(rival == "ours, composition" for _, rival in medians)
        for goal in ON_A_GPU if on_a_gpu else ON_A_CPU:
            ours, theirs = medians.get((goal.weight, "ours")), _theirs(goal, medians)
            if goal.holds(size) and ours is not None and theirs is not None:
                verdicts.append(
                    Verdict(shape, mode, goal.rival, goal.weight, theirs / ours, goal.must, goal.stretch)
                )
    return verdicts


def _theirs(goal: Goal, medians: dict[tuple[str, str], float]) -> float | None:
    if goal.over is not None:
        return medians.get((goal.over, "ours"))
    if goal.rival == COMPOSED:
        composed = [
            median
            for (weight, rival), median in medians.items()
            if weight == goal.weight and is_composition(rival)
        ]
        return min(composed, default=None)
    return medians.get((goal.weight, goal.rival))


def is_composition(rival: str) -> bool:
    return rival == "ours, composition" or rival.startswith(TWO_CALLS)
