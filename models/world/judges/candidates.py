"""Which of several images generated for one prompt of the world is best: the most facts of the prompt, then
the fewest flaws of the solids, then the most confident objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..captions import parse_caption
from .plausibility import examine
from .predictor import Predictor
from .predictor_network import ALIGN
from .scorer import Scorer


@dataclass(frozen=True)
class CandidateScore:
    """One candidate.

    `facts`: how many of the prompt's `facts_stated` hold; `flaws`: solids that hang or are broken, and solids
    more or fewer than the prompt names; `confidence`: the least of its objects', 0 without one.
    """

    index: int
    facts: int
    facts_stated: int
    flaws: int
    confidence: float

    @property
    def key(self) -> tuple[int, int, float]:
        """Larger is better."""
        return (self.facts, -self.flaws, self.confidence)

    def describe(self) -> str:
        told = f"{self.facts} of {self.facts_stated} facts" if self.facts_stated else "no fact stated"
        return f"{told}, {self.flaws} flaw{'' if self.flaws == 1 else 's'}, confidence {self.confidence:.2f}"


def score_candidates(
    images: Tensor, prompt: str, *, scorer: Scorer, predictor: Predictor
) -> list[CandidateScore]:
    """The score of each image (b, h, w, 3) in [0, 1], in the order given.

    Both judges were trained on the world: of other images, and of prompts in other words, they know nothing.
    """
    sides = [max(ALIGN, round(side / ALIGN) * ALIGN) for side in images.shape[1:3]]
    aligned = F.interpolate(rearrange(images, "b h w c -> b c h w"), sides, mode="bilinear", antialias=True)
    maps = predictor.read(rearrange(aligned.clamp(0, 1), "b c h w -> b h w c"))
    judgements = scorer.judge(images, [prompt] * len(images))
    named = len(parse_caption(prompt).phrases)
    scores = []
    for index, (judgement, found) in enumerate(zip(judgements, examine(maps), strict=True)):
        odd = abs(found.solids - named) if named else 0
        objects = judgement.seen.objects
        scores.append(
            CandidateScore(
                index=index,
                facts=sum(fact.holds for fact in judgement.facts),
                facts_stated=len(judgement.facts),
                flaws=found.broken + found.hanging + odd,
                confidence=min((item.confidence for item in objects), default=0.0),
            )
        )
    return scores


def choose_candidate(scores: list[CandidateScore]) -> int:
    """The index of the best, the first of equals."""
    return max(scores, key=lambda score: (*score.key, -score.index)).index
