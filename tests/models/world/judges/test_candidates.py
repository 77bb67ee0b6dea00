"""The choice among candidates, on rendered images whose content is known."""

import random

import pytest
import torch

from spatialweave.models.world.captions import caption
from spatialweave.models.world.judges.candidates import CandidateScore, choose_candidate, score_candidates
from spatialweave.models.world.judges.predictor import Predictor
from spatialweave.models.world.judges.scorer import Scorer
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes


@pytest.fixture(scope="module")
def judges():
    return {"scorer": Scorer.from_pretrained(), "predictor": Predictor.from_pretrained()}


def test_the_image_that_shows_the_prompt_is_chosen(judges):
    """Of six rendered scenes the caption describes one; it must be found for most of them."""
    scenes = sample_scenes(5, 6, split="test")
    images = render(scenes, 128, 128).image
    right = 0
    for i, scene in enumerate(scenes):
        scores = score_candidates(images, caption(scene, random.Random(i)), **judges)
        right += choose_candidate(scores) == i
    assert right >= 5


def test_a_solid_with_a_bite_counts_as_a_flaw(judges):
    scenes = sample_scenes(5, 6, split="test")
    frames = render(scenes, 128, 128)
    whole, bitten = frames.image.clone(), frames.image.clone()
    for image, labels in zip(bitten, frames.segmentation, strict=True):
        rows, columns = torch.nonzero(labels == 1, as_tuple=True)
        middle, right = int(rows.float().mean()), int(columns.max())
        side = max(2, (right - int(columns.min())) // 2)
        ground = image[-3:, :3].mean((0, 1))
        image[max(0, middle - side // 2) : middle + side // 2, right - side : right + 1] = ground
    flaws = [sum(s.flaws for s in score_candidates(x, "", **judges)) for x in (whole, bitten)]
    assert flaws[1] >= flaws[0] + 3


@pytest.mark.parametrize("size", [(41, 70), (8, 8), (256, 128)])
def test_any_size_is_judged(judges, size):
    images = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(1))
    scores = score_candidates(images, "a red ball", **judges)
    assert [score.index for score in scores] == [0, 1] and scores[0].facts_stated == 1


def test_facts_come_before_flaws_and_flaws_before_confidence():
    scores = [
        CandidateScore(0, 3, 4, 0, 0.9),
        CandidateScore(1, 4, 4, 2, 0.9),
        CandidateScore(2, 4, 4, 1, 0.5),
        CandidateScore(3, 4, 4, 1, 0.6),
        CandidateScore(4, 4, 4, 1, 0.6),
    ]
    assert choose_candidate(scores) == 3
    assert choose_candidate(scores[:2]) == 1
    assert scores[1].describe() == "4 of 4 facts, 2 flaws, confidence 0.90"
