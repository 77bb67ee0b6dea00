"""An edit put back: exact size, the input's pixels bit for bit outside, and what changed found by difference.
"""

import numpy as np
import pytest
import torch
from scipy import ndimage

from spatialweave.models.joyai_edit.framing import fit_images, plan_framing
from spatialweave.models.joyai_edit.restore import (
    FramedImage,
    find_edited,
    require_mask,
    restore_image,
    soften,
)


def scene(height, width, seed=4):
    values = np.random.default_rng(seed).random((height, width, 3))
    smooth = ndimage.gaussian_filter(values, (3, 3, 0))
    return torch.from_numpy((smooth - smooth.min()) / (smooth.max() - smooth.min())).float()[None]


def framed(height, width, mode="pad"):
    image = scene(height, width)
    framing = plan_framing(height, width, mode)
    return FramedImage(image, framing), fit_images(image, framing)


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("size", [(333, 777), (517, 1023), (1201, 801), (1024, 1024)])
def test_outside_the_mask_it_is_the_input_bit_for_bit(size, mode):
    source, edited = framed(*size, mode)
    height, width = size
    edited = (edited * 0.5).clone()
    mask = torch.zeros(size)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    out = restore_image(edited, source, mask, feather=8)
    assert out.image.shape == (1, height, width, 3)
    assert torch.equal(out.image[0][mask == 0], source.image[0][mask == 0])
    middle = (slice(height // 4 + 12, height // 2 - 12), slice(width // 4 + 12, width // 2 - 12))
    assert (out.image[0][middle] - source.image[0][middle] * 0.5).abs().max() < 0.06
    assert not out.edited[mask == 0].any() and (out.edited[middle] == 1).all()


def test_the_seam_rises_evenly_inside_the_mask():
    mask = torch.zeros(60, 80)
    mask[10:50, 10:70] = 1
    soft = soften(mask, 8)
    assert (
        soft[30, 9] == 0
        and soft[30, 10:19].tolist() == pytest.approx([n / 8 for n in range(1, 9)] + [1.0])
    )
    assert torch.equal(soft > 0, mask > 0) and torch.equal(soften(mask, 0), mask)


def test_a_thin_part_keeps_a_full_middle_and_grey_stays_grey():
    mask = torch.zeros(60, 80)
    mask[10:13, 10:70], mask[30:55, 10:70] = 1, 1
    soft = soften(mask, 20)
    assert soft[11, 40] == 1 and soft[42, 40] == 1
    assert soften(mask * 0.5, 4).max() == 0.5


def test_the_whole_edit_without_a_mask():
    source, edited = framed(333, 777)
    out = restore_image(edited, source, None, 8)
    assert out.alignment.mean_px < 0.05 and (out.edited == 1).all() and not out.uncovered.any()
    assert (out.image - source.image).abs().mean() < 0.01
    said = out.describe().splitlines()
    assert (
        said[0] == "Restored to 777 x 333 (width x height)."
        and said[1].startswith("0.0% of the pixels")
        and len(said) == 3
    )


def test_what_a_crop_left_out_is_the_input_and_said():
    source, edited = framed(620, 1000, "crop")
    out = restore_image(1 - edited, source, None, 8)
    assert out.uncovered.any() and torch.equal(out.image[0][out.uncovered], source.image[0][out.uncovered])
    assert "were cropped away before the edit" in out.describe() and not out.edited[out.uncovered].any()


def test_changes_are_found_and_noise_is_none():
    source, fitted = framed(517, 1023)
    height, width = fitted.shape[1:3]
    noisy = (fitted + torch.randn(fitted.shape, generator=torch.Generator().manual_seed(1)) * 0.02).clamp(
        0, 1
    )
    assert not find_edited(noisy, source, 0.1).any()
    edited = noisy.clone()
    edited[:, 100:300, 200:500] = torch.tensor([1.0, 0, 0])
    mask = find_edited(edited, source, 0.1)
    framing, (wide, high) = source.framing, (1023, 517)
    assert framing.taken == (0, 0, wide, high)
    x0, y0, x1, y1 = framing.placed
    left, right = ((x - x0) * wide / (x1 - x0) for x in (200, 500))
    top, bottom = ((y - y0) * high / (y1 - y0) for y in (100, 300))
    rows, columns = torch.nonzero(mask.any(1)).flatten(), torch.nonzero(mask.any(0)).flatten()
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    grown = found - np.array([left, top, right, bottom])
    assert (
        (grown[:2] <= 0).all()
        and (grown[:2] > -14).all()
        and (grown[2:] >= 0).all()
        and (grown[2:] < 14).all()
    )
    out = restore_image(edited, source, mask, 4)
    assert torch.equal(out.image[0][mask == 0], source.image[0][mask == 0]) and out.alignment.mean_px < 0.05


def test_an_identity_edit_gives_the_input():
    source, fitted = framed(333, 777)
    mask = find_edited(fitted, source, 0.1)
    assert not mask.any() and torch.equal(restore_image(fitted, source, mask, 8).image, source.image)


def test_masks_that_are_none_are_refused():
    framing = plan_framing(300, 500)
    with pytest.raises(
        ValueError,
        match=r"Expected an edit mask of the input's size, 500 x 300 \(width x height\), got 64 x 48",
    ):
        require_mask(torch.ones(48, 64), framing)
    with pytest.raises(ValueError, match="got one without a pixel"):
        require_mask(torch.full((300, 500), float("nan")), framing)
    with pytest.raises(ValueError, match=r"Expected an image of 1280 x 768 .* got 64 x 64"):
        find_edited(torch.zeros(1, 64, 64, 3), FramedImage(torch.zeros(1, 300, 500, 3), framing), 0.1)
