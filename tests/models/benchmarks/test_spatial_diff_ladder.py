"""The ladder's judges on renders of right and wrong results, and its figures from random weights."""

import math
from dataclasses import replace

import pytest
import torch

from spatialweave.models.benchmarks import spatial_diff as ladder
from spatialweave.models.core.evaluation.edit_check import check_edit
from spatialweave.models.core.evaluation.edit_verdict import EditRequest
from spatialweave.models.core.geometry.view import View
from spatialweave.models.world.judges.scorer import Scorer
from spatialweave.models.world.moves import move_object, sample_moves
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import with_objects


@pytest.fixture(scope="module")
def cases():
    """Moves by a metre or more of an object that is alone."""
    edits = [e for e in sample_moves(4, 60, split="test", stratum="one") if e.parameters["metres"] >= 1][:6]
    return [
        ladder.MoveCase(
            edit, *(render([scene], ladder.SIZE, ladder.SIZE) for scene in (edit.source, edit.target))
        )
        for edit in edits
    ]


def judge(cases, images):
    scorer = Scorer.from_pretrained()
    return [ladder.judge_result(case, image, scorer) for case, image in zip(cases, images, strict=True)]


def test_exact_targets_hit_and_leave_no_ghost(cases):
    rows = judge(cases, [case.target.image[0] for case in cases])
    assert [row["hit_rate"] for row in rows] == [1.0] * len(cases)
    assert [row["ghost"] for row in rows] == [0.0] * len(cases)
    assert max(row["position_error"] for row in rows) < 0.02
    assert min(row["identity"] for row in rows) > 0.5
    assert [row["psnr_outside"] for row in rows] == [60.0] * len(cases)


def test_the_unchanged_image_does_not_hit(cases):
    rows = judge(cases, [case.before.image[0] for case in cases])
    assert sum(row["hit_rate"] for row in rows) == 0
    assert [row["ghost"] for row in rows] == [1.0] * len(cases)


def test_an_object_at_both_places_is_a_ghost(cases):
    images = []
    for case in cases:
        both = (*case.edit.source.objects, case.edit.target.objects[case.edit.object])
        images.append(render([with_objects(case.edit.source, both)], ladder.SIZE, ladder.SIZE).image[0])
    assert [row["ghost"] for row in judge(cases, images)] == [1.0] * len(cases)


def test_another_color_at_the_target_does_not_hit(cases):
    images = []
    for case in cases:
        item = case.edit.target.objects[case.edit.object]
        other = replace(item, color="blue" if item.color != "blue" else "yellow")
        images.append(render([with_objects(case.edit.target, (other,))], ladder.SIZE, ladder.SIZE).image[0])
    assert sum(row["hit_rate"] for row in judge(cases, images)) == 0


def test_another_place_does_not_hit_and_its_error_is_the_distance(cases):
    for case in cases:
        x, z = case.edit.target.objects[case.edit.object].position
        scene = move_object(case.edit.target, case.edit.object, (x + 0.6, z))
        frames = render([scene], ladder.SIZE, ladder.SIZE)
        (row,) = judge([case], [frames.image[0]])
        centers = [
            (each.segmentation[0] == case.edit.object + 1).nonzero().float().mean(0)
            for each in (frames, case.target)
        ]
        expected = float((centers[0] - centers[1]).norm()) / ladder.SIZE
        assert row["hit_rate"] == 0 and row["position_error"] == pytest.approx(expected, abs=0.03)


def test_noise_outside_the_edit_lowers_its_psnr(cases):
    generator = torch.Generator().manual_seed(1)
    noise = [0.1 * torch.randn(case.target.image[0].shape, generator=generator) for case in cases]
    rows = judge(cases, [(case.target.image[0] + each) for case, each in zip(cases, noise, strict=True)])
    assert all(row["psnr_outside"] == pytest.approx(20, abs=0.3) for row in rows)


def test_intervals_are_over_edits_and_missing_values_are_left_out():
    rows = [[{"hit_rate": 1.0}, {"hit_rate": math.nan}, {"hit_rate": 0.0}], [{"hit_rate": 0.0}] * 3]
    assert ladder.average_seeds(rows, "hit_rate") == [0.5, 0.0, 0.0]
    found = ladder.describe_values("x", [0.0, 1.0, math.nan])
    half = 12.7062 * math.sqrt(0.5) / math.sqrt(2)
    assert found == {
        "x": 0.5,
        "x.interval": [pytest.approx(0.5 - half, abs=1e-3), pytest.approx(0.5 + half, abs=1e-3)],
    }


def test_a_rate_counts_each_edit_once_however_many_seeds():
    """Wilson's interval of 3 of 10, by its formula."""
    found = ladder.describe_rate("x", [1.0] * 2 + [0.5] * 2 + [0.0] * 6 + [math.nan])
    z, share, n = 1.959964, 0.3, 10
    middle = (share + z * z / 2 / n) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / 4 / n / n) / (1 + z * z / n)
    assert found["x"] == 0.3
    assert found["x.interval"] == [pytest.approx(middle - half, abs=1e-4), pytest.approx(middle + half,
    abs=1e-4)]


def test_a_rung_is_compared_edit_by_edit():
    lora = [[{"hit_rate": float(i % 2), "ghost": 0.5} for i in range(40)]]
    better = [[{"hit_rate": 1.0, "ghost": 0.5} for _ in range(40)]]
    assert ladder.compare_rungs("r", better, "lora", lora) == {
        "r.hit_rate.against_lora": 1,
        "r.ghost.against_lora": 0,
    }


def test_a_camera_known_to_be_static_gives_the_figures_of_one_found_static(cases):
    case = cases[0]
    old, new = (f.segmentation[0] == case.edit.object + 1 for f in (case.before, case.target))
    view = View.from_depth(case.before.depth, units="metric", intrinsics=case.before.intrinsics)
    given = case.before.image[0], case.target.image[0], view, EditRequest("move object", new)
    known, found = (check_edit(*given, object_before=old, static_camera=static) for static in (True, False))
    assert not found.figures["camera_moved"] and found.figures["target_distance_of_width"] < 0.02
    assert {name: found.figures[name] for name in ("target_distance_of_width", "object_consistency")} == {
        name: known.figures[name] for name in ("target_distance_of_width", "object_consistency")
    }


@pytest.fixture
def cheap_judge(monkeypatch):
    monkeypatch.setattr(
        ladder, "judge_result", lambda case, image, scorer: dict.fromkeys(ladder.FIGURES, float(image.mean()))
    )


def test_an_interrupted_evaluation_goes_on_and_ends_as_one_that_was_not(tmp_path, monkeypatch, cheap_judge):
    plan, sample = ladder.LadderPlan(count=3, seeds=2, steps=1), ladder.SpatialDiffPipeline.__call__
    whole = ladder.evaluate_spatial_diff(plan, work=tmp_path / "whole")
    sampled = []

    def count(self, *args, **options):
        sampled.append(options["seed"])
        if len(sampled) == 3:
            raise KeyboardInterrupt
        return sample(self, *args, **options)

    monkeypatch.setattr(ladder.SpatialDiffPipeline, "__call__", count)
    with pytest.raises(KeyboardInterrupt):
        ladder.evaluate_spatial_diff(plan, work=tmp_path / "cut")
    assert ladder.evaluate_spatial_diff(plan, work=tmp_path / "cut") == whole
    assert len(sampled) == 5  # two rungs with two seeds, and the one that was interrupted
    assert (tmp_path / "cut" / "base.jsonl").read_text() == (tmp_path / "whole" / "base.jsonl").read_text()


def test_rows_of_other_settings_are_not_taken(tmp_path, cheap_judge):
    ladder.evaluate_spatial_diff(ladder.LadderPlan(count=3, seeds=1, steps=1), work=tmp_path)
    with pytest.raises(ValueError, match=r'base.jsonl, got those of \{"steps": 1\}'):
        ladder.evaluate_spatial_diff(ladder.LadderPlan(count=3, seeds=1, steps=2), work=tmp_path)
