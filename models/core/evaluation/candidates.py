"""Which of several candidates is best: by scores, or by how well each depth agrees with a second estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..geometry.align import Each
from ..geometry.view import View
from .compare import compare_views


@dataclass(frozen=True)
class Ranking:
    """The scores of several candidates, and the index of the best: the first of equals."""

    scores: tuple[float, ...]
    best: int
    name: str
    larger_is_better: bool

    def describe(self) -> str:
        """A line for each candidate, numbered from 0 as batches are."""
        order = "larger" if self.larger_is_better else "smaller"
        lines = [
            f"{index}: {score:.4g}{' (kept)' if index == self.best else ''}"
            for index, score in enumerate(self.scores)
        ]
        return "\n".join([f"{self.name}, {order} is better", *lines])


def rank_scores(scores: Sequence[float], *, larger_is_better: bool, name: str = "score") -> Ranking:
    """Rank finite scores; a NaN, as of a measure that was not possible, is never the best."""
    finite = [index for index, score in enumerate(scores) if math.isfinite(score)]
    if not finite:
        raise ValueError(
            f"Expected a finite {name} among the candidates, got {list(scores)}. Connect another score."
        )
    sign = -1 if larger_is_better else 1
    best = min(finite, key=lambda index: (sign * scores[index], index))
    return Ranking(tuple(map(float, scores)), best, name, larger_is_better)


def rank_by_agreement(view: View, reference: View, *, each: Each = iter) -> Ranking:
    """Rank depth maps by AbsRel against a second estimate of the same images, aligned by scale; one estimate
    serves all, or there is one for each.
    """
    if len(reference) not in (1, len(view)):
        raise ValueError(
            f"Expected 1 or {len(view)} depth maps in the second estimate of {len(view)} candidates, got "
            f"{len(reference)}. Estimate each candidate's image."
        )
    scores = []
    for index in each(range(len(view))):
        one, other = view[index], reference[index if len(reference) > 1 else 0]
        alike = one.mask.shape == other.mask.shape  # else the comparison says what differs
        if alike and not bool((one.mask & other.mask).any()):
            scores.append(math.nan)
        else:
            scores.append(compare_views(one, other, alignment="scale").scores["absrel"])
    name = "AbsRel against the second estimate, aligned by scale"
    return rank_scores(scores, larger_is_better=False, name=name)
