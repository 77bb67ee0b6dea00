"""Depth pictures: the values mean what the caller says, and nothing else."""

import math

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.geometry.depth_image import view_from_image
from spatialweave.models.core.geometry.view import View


def gray(*values):
    return torch.tensor(values).reshape(1, 1, -1, 1).expand(1, 1, len(values), 3)


@pytest.mark.parametrize(
    ("meaning", "wanted"),
    [
        ("depth as it is", [0.25, 0.5, 1.0]),
        ("white is far", [3.5, 5.0, 8.0]),
        ("white is near", [6.5, 5.0, 2.0]),
        ("white is near, disparity", [1 / (0.125 + 0.375 / 4), 1 / 0.3125, 2.0]),
    ],
)
def test_each_meaning(meaning, wanted):
    view, notice = view_from_image(gray(0.25, 0.5, 1.0), meaning=meaning, units="metric", near=2.0, far=8.0)
    assert_close(view.depth[0, 0], torch.tensor(wanted))
    assert notice is None and view.units == "metric" and view.intrinsics is None


def test_a_control_image_comes_back_between_its_ends():
    depth = torch.linspace(2, 8, 12).reshape(1, 3, 4)
    image = View.from_depth(depth, units="relative").to_control_image(near_percentile=0, far_percentile=100)
    view, _ = view_from_image(image, meaning="white is near, disparity", units="relative", near=2.0, far=8.0)
    assert_close(view.depth, depth, atol=1e-5)


def test_black_disparity_at_infinity_is_sky():
    view, notice = view_from_image(
        gray(0.0, 1.0), meaning="white is near, disparity", units="metric", near=1.0, far=math.inf
    )
    assert view.sky.tolist() == [[[True, False]]] and notice.startswith("1 of 2 depth pixels (50.0%)")


def test_metres_above_one_are_kept():
    view, _ = view_from_image(gray(12.5, 0.5), meaning="depth as it is", units="metric")
    assert view.depth.tolist() == [[[12.5, 0.5]]]


def test_bad_pixels_are_masked_and_counted():
    view, notice = view_from_image(
        gray(float("nan"), float("inf"), 0.0, 2.0), meaning="depth as it is", units="metric"
    )
    assert view.mask.tolist() == [[[False, False, False, True]]]
    assert (
        notice
        == "3 of 4 depth pixels (75.0%) are invalid and left out: 1 NaN, 1 infinite, 1 zero or negative."
    )


def test_rgba_uses_its_transparency_and_one_channel_is_enough():
    rgba = torch.cat([gray(0.5, 0.5), torch.tensor([[[[1.0], [0.0]]]])], dim=-1)
    view, notice = view_from_image(rgba, meaning="depth as it is", units="relative")
    assert view.mask.tolist() == [[[True, False]]] and "1 masked out" in notice
    one, _ = view_from_image(rgba[..., :1], meaning="depth as it is", units="relative")
    assert one.mask.all()


def test_mask_and_alpha_both_count_and_one_serves_the_batch():
    rgba = torch.cat([gray(0.5, 0.5, 0.5), torch.tensor([[[[1.0], [0.0], [1.0]]]])], dim=-1).expand(
        2, 1, 3, 4
    )
    view, _ = view_from_image(
        rgba, meaning="depth as it is", units="relative", mask=torch.tensor([[0.0, 1.0, 1.0]])
    )
    assert view.mask.tolist() == [[[False, False, True]]] * 2


def test_picture_and_field_of_view_go_along():
    picture = torch.rand(1, 1, 2, 4)
    view, _ = view_from_image(
        gray(0.5, 1.0), meaning="depth as it is", units="metric", picture=picture, fov_degrees=90.0
    )
    assert torch.equal(view.image, picture[..., :3]) and view.intrinsics[0, 0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"meaning": "bright"}, r"Expected a meaning of .*, got 'bright'"),
        ({"image": torch.zeros(1, 2, 2, 2)}, r"with c = 1, 3 or 4, got \(1, 2, 2, 2\)"),
        ({"image": torch.rand(1, 4, 4, 3)}, "Expected a gray depth image, got a colored one"),
        ({"near": 3.0, "far": 2.0}, r"Expected depths 0 <= near < far, got 3 \(near\) and 2 \(far\)"),
        ({"meaning": "white is near, disparity", "near": 0.0}, "Expected near above 0, got 0"),
        ({"far": math.inf}, "Expected a finite far, got infinity"),
        (
            {"image": torch.ones(4, 1, 2, 4), "mask": torch.ones(3, 1, 2)},
            r"a mask for a depth image \(4, 1, 2\), got \(3, 1, 2\)",
        ),
        (
            {"image": torch.ones(4, 1, 2, 3), "picture": torch.ones(3, 1, 2, 3)},
            "got 4 of depth and 3 of image",
        ),
    ],
)
def test_what_is_refused(change, sentence):
    arguments = {"image": gray(0.5, 1.0), "meaning": "white is far", "units": "metric"} | change
    with pytest.raises(ValueError, match=sentence):
        view_from_image(**arguments)


@pytest.mark.parametrize("meaning", ["white is far", "white is near", "white is near, disparity"])
def test_values_that_are_no_gray_are_refused_and_bytes_are_scaled(meaning):
    """What lies far beyond [0, 1] was meant otherwise; extrapolated, it would be a depth outside near and
    far.
    """
    gray = torch.linspace(0, 1, 12).reshape(1, 3, 4, 1)
    with pytest.raises(ValueError, match="Expected gray values from 0 to 1 in the depth image, got 0 to 300"):
        view_from_image(gray * 300, meaning=meaning, units="metric", near=1.0, far=5.0)
    levels = (gray * 255).round()
    exact, _ = view_from_image(levels / 255, meaning=meaning, units="metric", near=1.0, far=5.0)
    as_bytes, _ = view_from_image(levels.to(torch.uint8), meaning=meaning, units="metric", near=1.0, far=5.0)
    torch.testing.assert_close(as_bytes.depth, exact.depth)
    assert 1 <= float(exact.depth.min()) and float(exact.depth.max()) <= 5 + 1e-5


def test_bytes_that_are_depths_stay_as_they_are():
    view, _ = view_from_image(
        torch.full((1, 2, 2, 1), 7, dtype=torch.uint8), meaning="depth as it is", units="metric"
    )
    assert bool((view.depth == 7).all())


def test_complex_numbers_are_no_depth():
    with pytest.raises(ValueError, match="real numbers"):
        view_from_image(torch.ones(1, 2, 2, 1, dtype=torch.complex64), meaning="white is far", units="metric")
