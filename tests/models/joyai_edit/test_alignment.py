"""Shifts that scipy made, found again; the fit's own alignment, by the function that the benchmark calls."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from spatialweave.models.joyai_edit.alignment import measure_alignment, measure_framing


def noise(height=300, width=400, scale=3.0, seed=1):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random((height, width)), scale)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def picture(values):
    return torch.from_numpy(np.ascontiguousarray(values)).float()[..., None].expand(*values.shape, 3)


@pytest.mark.parametrize("down, right", [(0, 0), (0.3, -0.7), (5.25, -3.5), (0.02, 0.01), (-11, 4)])
def test_shifts_are_found(down, right):
    image = noise()
    moved = ndimage.shift(image, (down, right), order=5, mode="nearest")
    found = measure_alignment(picture(image), picture(moved))
    assert (
        found.shift == pytest.approx((right, down), abs=5e-3)
        and found.mean_px == pytest.approx(np.hypot(down, right), abs=5e-3)
    )
    assert found.blocks > 20 and f"{found.mean_px:.3f} px mean" in found.describe()


def test_blur_and_noise_are_no_shift():
    image = noise()
    soft = ndimage.gaussian_filter(image, 1.0) + np.random.default_rng(2).normal(0, 0.01, image.shape)
    assert measure_alignment(picture(image), picture(soft)).mean_px < 0.05


def test_edited_parts_and_flat_ones_are_left_out():
    image = noise()
    other = image.copy()
    other[:, 200:] = ndimage.shift(image, (0, 4), order=1)[:, 200:]
    edited = torch.zeros(300, 400, dtype=torch.bool)
    edited[:, 190:] = True
    assert measure_alignment(picture(image), picture(other), edited).mean_px < 1e-3
    assert measure_alignment(picture(image), picture(other)).worst_px > 3
    nothing = measure_alignment(torch.full((200, 200, 3), 0.5), torch.full((200, 200, 3), 0.5))
    assert (
        nothing.blocks == 0
        and np.isnan(nothing.mean_px)
        and nothing.describe().startswith("Alignment not measured")
    )
    assert measure_alignment(torch.rand(5, 5, 3), torch.rand(5, 5, 3)).blocks == 0


def test_two_sizes_are_refused():
    with pytest.raises(ValueError, match="Expected two images of one size, got 40 x 30 and 30 x 30"):
        measure_alignment(torch.zeros(30, 40, 3), torch.zeros(30, 30, 3))


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_a_fit_and_back_moves_nothing(mode):
    found = measure_framing([(333, 777), (1201, 801), (517, 1023)], mode)
    assert all(one.blocks >= 20 and one.mean_px < 0.01 for one in found)
