"""The evaluation of the edit check on a few of the world's edits."""

import math
import random

import pytest
import torch

from spatialweave.models.benchmarks import joyai_edit
from spatialweave.models.benchmarks.joyai_edit import (
    degrade_image,
    evaluate_edit_check,
    make_case,
    request_of,
)
from spatialweave.models.world.edits import sample_edits
from spatialweave.models.world.render import render


def test_a_few_edits_give_all_figures(monkeypatch):
    monkeypatch.setattr(joyai_edit, "_FRAMED", 2)
    monkeypatch.setattr(joyai_edit, "_SIZE", 128)
    figures = evaluate_edit_check(6, seed=7, split="train")
    keys = {
        "move.displacement_error", "camera.yaw_error", "camera.pitch_error", "check.accuracy",
        "framing.alignment_px",
    }
    assert keys <= set(figures) and all(math.isfinite(figures[key]) for key in keys)
    assert figures["edits"] == figures["verdicts"] == 6 and figures["check.accuracy"] >= 0.5
    assert figures["move.displacement_error"] < 0.02 and figures["framing.alignment_px"] < 0.05
    low, high = figures["check.accuracy.interval"]
    assert 0 <= low <= figures["check.accuracy"] <= high <= 1


def test_too_few_edits_are_refused():
    with pytest.raises(ValueError, match="at least 3 edits, one of each kind, got 2"):
        evaluate_edit_check(2)


def test_a_spoiled_image_is_the_same_image():
    image = torch.full((32, 32, 3), 0.5)
    spoiled = degrade_image(image, random.Random(0))
    assert (
        0.002 < float((spoiled - image).abs().mean()) < 0.03
        and torch.equal(spoiled, degrade_image(image, random.Random(0)))
    )


@pytest.mark.parametrize(
    "case", ["nothing moved", "box remained", "original remained", "wrong place", "object gone"]
)
def test_a_wrong_move_is_what_it_is_called(case, monkeypatch):
    """By the segmentation of its frames: how many pixels of the object are where."""
    monkeypatch.setattr(joyai_edit, "_SIZE", 64)
    for edit in sample_edits(11, 12, split="train", kinds=("move",)):
        before, target = (render([scene], 64, 64) for scene in (edit.source, edit.target))
        made = make_case(edit, case, before, target, random.Random(1))
        if made is None:
            continue
        image, frames = made
        old, goal, now = (each.segmentation[0] == edit.object + 1 for each in (before, target, frames))
        if case == "nothing moved":
            assert torch.equal(old, now)
        if case == "box remained":
            red = (image[..., 0] > 0.7) & (image[..., 1] < 0.4) & (image[..., 2] < 0.4)
            assert torch.equal(goal, now) and int(red.sum()) > 20
        if case == "original remained":
            copy = frames.segmentation[0] == len(edit.source.objects) + 1
            assert bool(copy.any()) and float((now & old).sum() / old.sum()) > 0.8
        if case == "object gone":
            assert len(frames.segmentation.unique()) < len(before.segmentation.unique())
        if case == "wrong place":
            assert float((now & goal).sum()) < 0.5 * float(goal.sum()) and not torch.equal(now, old)
        return
    raise AssertionError(f"no edit has the case {case}")


def test_a_camera_edit_is_asked_for_in_the_checks_terms():
    for edit in sample_edits(11, 20, split="train", kinds=("camera",)):
        request, numbers = request_of(edit, None), edit.parameters
        assert (
            (request.yaw_degrees, request.pitch_degrees)
            == (numbers.get("yaw_degrees", 0), numbers.get("pitch_degrees", 0))
        )
        nearer = numbers.get("metres", 0) > 0 or numbers.get("factor", 1) > 1
        moves_along = numbers["motion"] in ("dolly", "zoom")
        assert request.zoom == (("in" if nearer else "out") if moves_along else "unchanged")
