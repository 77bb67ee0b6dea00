"""Warped images, changed pixels and red boxes, against numpy, Pillow and JPEG files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from spatialweave.models.core.evaluation.edit_change import (
    Box,
    box_of_mask,
    changed_pixels,
    find_red_box,
    warp_image,
)


def noise(height=60, width=80, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((height, width, 3)).astype(np.float32))


def test_a_step_to_the_side_shifts_a_flat_wall():
    image, focal, depth = noise(), 100.0, 4.0
    matrix = torch.tensor([[focal, 0, 40], [0, focal, 30], [0, 0, 1]])
    pose = torch.eye(4)
    pose[0, 3] = 7 * depth / focal  # seven pixels to the right
    warped = warp_image(image, torch.full((60, 80), depth), matrix, pose)
    assert (
        torch.equal(warped.image[:, 7:], image[:, :-7])
        and bool(warped.known[:, 8:].all())
        and not warped.known[:, :6].any()
    )
    torch.testing.assert_close(warped.depth[:, 7:], torch.full((60, 73), depth))


def test_the_nearer_of_two_points_is_seen():
    image, depth = torch.zeros(20, 20, 3), torch.full((20, 20), 5.0)
    image[:, :10], depth[:, :10] = 1.0, 2.0  # a white half, nearer
    matrix = torch.tensor([[20.0, 0, 10], [0, 20, 10], [0, 0, 1]])
    pose = torch.eye(4)
    pose[0, 3] = 0.5  # five pixels for the near half, two for the far one
    warped = warp_image(image, depth, matrix, pose)
    assert bool((warped.image[:, 10:15] == 1).all()) and bool((warped.image[:, 15:] == 0).all())


def test_noise_and_jpeg_are_no_change_and_a_patch_is():
    image = torch.from_numpy(np.full((60, 80, 3), 0.5, np.float32)) + 0.1 * noise()
    file = io.BytesIO()
    Image.fromarray((image * 255).byte().numpy()).save(file, "JPEG", quality=92)
    again = torch.from_numpy(np.array(Image.open(file))).float() / 255
    everywhere = torch.ones(60, 80, dtype=torch.bool)
    assert float(changed_pixels(image, again, everywhere).float().mean()) < 0.01
    again[20:40, 30:50] = torch.tensor([0.9, 0.2, 0.2])
    changed = changed_pixels(image, again, everywhere)
    assert bool(changed[21:39, 31:49].all()) and int(changed.sum()) <= 24 * 24
    assert not changed_pixels(image, again, torch.zeros_like(everywhere)).any()


def drawn(shape, width=4, size=(256, 192)):
    picture = Image.fromarray((noise(size[1], size[0]).numpy() * 60 + 90).astype(np.uint8))
    shape(ImageDraw.Draw(picture), width)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, subsampling=0)
    return torch.from_numpy(np.array(Image.open(file))).float() / 255


@pytest.mark.parametrize("expected", [None, Box(50, 40, 151, 121)])
def test_a_red_box_is_found_in_a_jpeg(expected):
    image = drawn(lambda pen, width: pen.rectangle((50, 40, 150, 120), outline=(255, 0, 0), width=width), 3)
    box = find_red_box(image, expected)
    assert box is not None and box.intersection_over_union(Box(50, 40, 151, 121)) > 0.95


@pytest.mark.parametrize(
    "shape",
    [
        lambda pen, width: pen.ellipse((50, 40, 150, 120), fill=(255, 0, 0)),
        lambda pen, width: pen.rectangle((50, 40, 150, 120), fill=(255, 0, 0)),
        lambda pen, width: pen.line((50, 40, 150, 120), fill=(255, 0, 0), width=width),
        lambda pen, width: pen.rectangle((50, 40, 150, 120), outline=(0, 0, 255), width=width),
        lambda pen, width: None,
    ],
)
def test_what_is_no_red_box_is_none(shape):
    assert find_red_box(drawn(shape)) is None


def test_boxes_overlap_as_rectangles_do():
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[2:5, 3:9] = True
    assert box_of_mask(mask) == Box(3, 2, 9, 5)
    assert Box(0, 0, 4, 4).intersection_over_union(Box(2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert Box(0, 0, 2, 2).intersection_over_union(Box(5, 5, 7, 7)) == 0
