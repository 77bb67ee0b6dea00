"""Comparisons with a planted error, whose figures are known."""

import math

import pytest
import torch

from spatialweave.models.core.evaluation.compare import compare_views
from spatialweave.models.core.geometry.camera import intrinsics_from_fov
from spatialweave.models.core.geometry.view import View


def truth(**others):
    depth = torch.linspace(2, 4, 60).reshape(1, 6, 10)
    return View.from_depth(depth, units="metric", **others)


def test_a_depth_ten_percent_too_far_is_that():
    found = compare_views(View.from_depth(truth().depth * 1.1, units="metric"), truth(), fov_degrees=60.0)
    assert found.scores["absrel"] == pytest.approx(0.1, abs=1e-6) and found.scores["delta1"] == 1
    assert found.scores["rmse"] == pytest.approx(0.1 * float(truth().depth.square().mean().sqrt()), rel=1e-5)
    assert found.scores["silog"] == pytest.approx(0, abs=1e-4) and found.scores[
        "normal_angle"
    ] == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize(
    ("alignment", "quantity", "change"),
    [
        ("scale", "depth", lambda depth: depth / 3),
        ("scale, robust", "depth", lambda depth: depth / 3),
        ("scale and shift", "depth", lambda depth: depth / 3 + 0.5),
        ("scale and shift, robust", "depth", lambda depth: depth / 3 + 0.5),
        ("scale and shift", "disparity", lambda depth: 1 / (2 / depth + 0.25)),
        ("scale and shift, robust", "disparity", lambda depth: 1 / (2 / depth + 0.25)),
    ],
)
def test_the_right_alignment_leaves_no_error(alignment, quantity, change):
    view = View.from_depth(change(truth().depth), units="relative")
    found = compare_views(view, truth(), alignment=alignment, quantity=quantity)
    assert found.scores["absrel"] < 1e-4 and found.units == "metric"
    assert f"alignment: {alignment}, in {quantity}" in found.describe()


def test_only_pixels_valid_in_both_count_and_are_counted():
    view, reference = truth().depth.clone(), truth().depth.clone()
    view[0, 0, 0], reference[0, 1, :4] = float("nan"), 0
    found = compare_views(View.from_depth(view, units="metric"), View.from_depth(reference, units="metric"))
    assert found.pixels == 55 and found.scores["absrel"] == 0
    assert "55 of 60 pixels count (91.7%)" in found.describe()


def test_normals_of_the_views_go_before_measured_ones():
    up, tilted = (
        torch.tensor([0.0, 0.0, -1.0]),
        torch.tensor([0.0, -math.sin(math.radians(30)), -math.cos(math.radians(30))]),
    )
    views = [truth(normals=direction.expand(1, 6, 10, 3)) for direction in (up, tilted)]
    assert compare_views(*views).scores["normal_angle"] == pytest.approx(30, abs=1e-4)


def test_a_tilted_plane_has_its_angle_through_the_references_camera():
    intrinsics = intrinsics_from_fov(60.0, 40, 30)
    x = (torch.arange(40) + 0.5 - 20) / intrinsics[0, 0]
    slant = (2 / (1 - x * math.tan(math.radians(20)))).expand(1, 30, 40)  # z = 2 + x tan 20
    reference = View.from_depth(torch.full((1, 30, 40), 2.0), units="metric", intrinsics=intrinsics)
    found = compare_views(View.from_depth(slant, units="metric"), reference)
    assert found.scores["normal_angle"] == pytest.approx(20, abs=0.05)


def test_without_a_camera_the_angle_is_not_measurable():
    found = compare_views(truth(), truth())
    assert math.isnan(found.scores["normal_angle"]) and "normal angle not measurable" in found.describe()


def test_what_an_alignment_drives_out_of_range_is_held_and_told():
    depth, target = torch.tensor([[[1.0, 2, 3, 4]]]), torch.tensor([[[0.1, 3, 6, 12]]])
    views = [
        View.from_depth(values, units=units) for values, units in ((depth, "relative"), (target, "metric"))
    ]
    found = compare_views(*views, alignment="scale and shift")
    assert (
        found.clamped == 1
        and "1 aligned pixels were out of range" in found.describe()
        and math.isfinite(found.scores["silog"])
    )


def test_what_is_refused():
    relative = View.from_depth(truth().depth, units="relative")
    left, right = truth().depth.clone(), truth().depth.clone()
    left[..., 5:], right[..., :5] = 0, 0
    halves = [View.from_depth(half, units="metric") for half in (left, right)]
    for arguments, sentence in (
        (
            (relative, truth()),
            "Expected two depths of one unit, got relative and metric, which share no scale. "
            r"Choose an alignment\.$",
        ),
        (halves, r"Expected a pixel that is valid in both depths, got none in image 0 of 1"),
        (
            (truth(), View.from_depth(torch.ones(1, 5, 5), units="metric")),
            r"Expected a depth of the reference's 5 x 5 pixels, got 10 x 6",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            compare_views(*arguments)
    with pytest.raises(ValueError, match="Expected an alignment of 'none' or .*, got 'shift'"):
        compare_views(truth(), truth(), alignment="shift")
