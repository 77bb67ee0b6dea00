"""The colour map by CIELAB as LittleCMS computes it, and the depths at its ends."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from spatialweave.models.core.geometry.view import View
from spatialweave.models.core.visualize.depth_colors import NO_DEPTH, color_depth, map_colors


def lightness(colours):
    """CIE L* 0 ... 100 of sRGB colours ``n 3``."""
    picture = Image.fromarray((colours * 255).round().byte().numpy()[None])
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    return np.asarray(lab)[0, :, 0].astype(float) * 100 / 255


def test_lightness_rises_evenly_from_far_to_near():
    steps = np.diff(lightness(map_colors(torch.linspace(0, 1, 13))))
    assert steps.min() > 5.5 and steps.max() / steps.min() < 1.4
    fine = lightness(map_colors(torch.linspace(0, 1, 200)))
    assert np.diff(fine).min() > -0.5 and fine[0] < 12 and fine[-1] > 94


def test_values_outside_are_held():
    torch.testing.assert_close(map_colors(torch.tensor([-1.0, 2.0])), map_colors(torch.tensor([0.0, 1.0])))


@pytest.mark.parametrize(
    ("spacing", "middle"), [("disparity", 2 / (1 / 2 + 1 / 8)), ("log", 4.0), ("depth", 5.0)]
)
def test_legend_says_what_the_colours_show(spacing, middle):
    depth = torch.tensor([[2.0, middle, 8.0, float("nan")]])
    picture = color_depth(
        View.from_depth(depth, units="metric"), spacing=spacing, near_percentile=0, far_percentile=100
    )
    assert (picture.near, picture.far) == (2, 8)
    assert picture.depth_at(0.5) == pytest.approx(middle)
    torch.testing.assert_close(
        picture.image[0, :3], map_colors(torch.tensor([1.0, 0.5, 0.0])), atol=1e-5, rtol=0
    )
    assert picture.image[0, 3].tolist() == pytest.approx(NO_DEPTH) and picture.has_holes


def test_constant_depth_has_a_colour_and_one_value():
    picture = color_depth(View.from_depth(torch.full((2, 2), 3.0), units="metric"))
    assert picture.near == picture.far == picture.depth_at(0.5) == 3 and not picture.has_holes
    torch.testing.assert_close(picture.image, map_colors(torch.full((2, 2), 0.5)))


def test_bad_input_is_worded():
    with pytest.raises(ValueError, match="Expected one depth map, got a batch of 2"):
        color_depth(View.from_depth(torch.ones(2, 2, 2), units="metric"))
    with pytest.raises(
        ValueError,
        match=r"Expected a valid pixel \(finite and above 0\), got none among 4 in depth map 0 of 1",
    ):
        color_depth(View.from_depth(torch.zeros(2, 2), units="metric"))
