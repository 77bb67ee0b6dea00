"""The preview of a depth: colours by nearness, the scale's ends where they were asked for, both panels and a
legend.
"""

import pytest
import torch

from spatialweave.models.core.geometry.view import View
from spatialweave.models.core.visualize.depth_preview import GAP, LEGEND, PANEL, explain_depth, picture_depth


def ramp(batch=1, image=None):
    return View.from_depth(torch.linspace(1, 16, 40).expand(batch, 30, 40), units="metric", image=image)


def test_control_is_white_near_and_black_far_in_disparity():
    (shown,) = picture_depth(ramp(), "control")
    assert shown.image[0, 0].tolist() == [1, 1, 1] and shown.image[0, -1].tolist() == [0, 0, 0]
    middle = (1 / ramp().depth[0, 0, 10] - 1 / 16) / (1 - 1 / 16)
    assert shown.image[0, 10, 0] == pytest.approx(float(middle), abs=1e-5)


def test_colour_darkens_with_distance():
    (shown,) = picture_depth(ramp(), "colour")
    brightness = shown.image[0].mean(dim=-1)
    assert (brightness.diff() < 0).all()


@pytest.mark.parametrize("style", ["colour", "control"])
def test_percentiles_move_the_ends_of_the_scale(style):
    (shown,) = picture_depth(ramp(), style, near_percentile=25, far_percentile=75)
    assert shown.near == pytest.approx(1 + 15 * 0.25, rel=0.02) and shown.far == pytest.approx(
        1 + 15 * 0.75, rel=0.02
    )
    assert torch.equal(shown.image[0, 0], shown.image[0, 5]), "beyond the end of the scale nothing changes"


@pytest.mark.parametrize("style", ["colour", "control"])
def test_sheets_hold_picture_depth_and_legend(style):
    image = torch.rand(2, 30, 40, 3, generator=torch.Generator().manual_seed(0))
    view = ramp(2, image)
    shown = picture_depth(view, style)
    sheets = explain_depth(view, shown, style)
    factor = 8  # 40 pixels to at least 320
    assert sheets.shape == (2, 30 * factor + LEGEND, 2 * 40 * factor + GAP, 3)
    depth = sheets[:, : 30 * factor : factor, 40 * factor + GAP :: factor]
    assert (depth[0] - shown[0].image).abs().max() <= 0.5 / 255 + 1e-6, "depth pixels are enlarged, not mixed"
    legend = sheets[0, 30 * factor :, 40 * factor + GAP :]
    assert float(legend.max()) > 0.8 and legend.mean(dim=-1).unique().numel() > 50, "a bar and letters"
    assert torch.equal(sheets[0, 30 * factor :], sheets[1, 30 * factor :])


@pytest.mark.parametrize(
    ("size", "factor"), [((2048, 16), 1), ((200, 20), 6), ((1, 1), 320), ((16, 2048), 1)]
)
def test_a_narrow_strip_stays_within_bounds_and_stands_in_the_middle(size, factor):
    """16 pixels wide and 2048 high would be 40,960 rows, were it enlarged to the panel's width."""
    view = View.from_depth(torch.linspace(1, 16, size[0] * size[1]).reshape(1, *size), units="metric")
    (shown,) = picture_depth(view, "colour")
    (sheet,) = explain_depth(view, [shown], "colour")
    rows, columns = size[0] * factor, size[1] * factor
    assert sheet.shape == (rows + LEGEND, max(columns, PANEL), 3)
    left = (sheet.shape[1] - columns) // 2
    assert (sheet[:rows:factor, left : left + columns : factor] - shown.image).abs().max() <= 0.5 / 255 + 1e-6


def test_a_view_without_a_picture_has_one_panel():
    assert explain_depth(ramp(), picture_depth(ramp(), "colour"), "colour").shape[2] == 320


def test_constant_depth_and_holes_are_shown():
    depth = torch.full((1, 20, 20), 3.0)
    depth[0, :5] = float("nan")
    view = View.from_depth(depth, units="relative")
    for style in ("colour", "control"):
        (shown,) = picture_depth(view, style)
        assert shown.has_holes and shown.near == shown.far == 3
        assert explain_depth(view, [shown], style).isfinite().all()


def test_depth_without_a_valid_pixel_is_refused_in_a_sentence():
    with pytest.raises(
        ValueError,
        match=r"Expected a valid pixel \(finite and above 0\), got none among 16 in depth map 0 of 1",
    ):
        picture_depth(View.from_depth(torch.zeros(1, 4, 4), units="relative"), "control")
