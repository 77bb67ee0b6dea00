"""An object found again, and its turn, on discs and boxes that numpy draws."""

import math

import numpy as np
import pytest
import torch

from spatialweave.models.core.evaluation.edit_change import changed_pixels
from spatialweave.models.core.evaluation.edit_object import mask_center, match_object, split_change
from spatialweave.models.core.evaluation.edit_turn import turn_of_object
from spatialweave.models.core.geometry.view import View

SIZE = 128


def scene(*discs):
    """A wall with blotches and blue discs (x, y, radius), and the mask of the last."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    wall = 0.55 + 0.1 * np.sin(0.2 * x) * np.cos(0.15 * y)
    image, inside = np.stack([wall, wall, 0.8 * wall], -1), np.zeros((SIZE, SIZE), bool)
    for center_x, center_y, radius in discs:
        inside = (x - center_x) ** 2 + (y - center_y) ** 2 < radius**2
        image[inside] = (0.1, 0.3, 0.9)
    return torch.from_numpy(image).float(), torch.from_numpy(inside)


def match(before, after, old):
    return match_object(before, after, changed_pixels(before, after, torch.ones_like(old)), old)


@pytest.mark.parametrize("goal", [(90, 40, 14), (60, 70, 14), (46, 64, 14), (90, 90, 9), (80, 60, 22)])
def test_a_disc_is_found_at_its_new_place_and_size(goal):
    before, old = scene((40, 64, 14))
    after, new = scene(goal)
    found = match(before, after, old)
    overlap = float((found.mask & new).sum() / (found.mask | new).sum())
    assert overlap > 0.85 and not found.remained and found.consistency > 0.9
    assert math.dist(mask_center(found.mask), goal[:2]) < 0.02 * SIZE


def test_the_original_beside_the_copy_is_seen():
    before, old = scene((40, 64, 14))
    found = match(before, scene((40, 64, 14), (95, 64, 14))[0], old)
    assert found.remained and math.dist(mask_center(found.mask), (95, 64)) < 2


def test_a_removed_object_is_not_found():
    before, old = scene((40, 64, 14))
    assert not match(before, scene()[0], old).is_found


def test_an_object_that_stays_is_found_where_it_was():
    before, old = scene((40, 64, 14))
    found = match(before, before.clone(), old)
    assert math.dist(mask_center(found.mask), (40, 64)) < 0.5 and not found.remained


def test_the_old_place_is_told_from_the_new_by_depth():
    before, old = scene((40, 64, 14))
    after, _ = scene((90, 64, 14))
    depth = torch.where(old, 3.0, 5.0)
    changed = changed_pixels(before, after, torch.ones_like(old))
    first, second = split_change(before, after, changed, depth)
    assert math.dist(mask_center(first), (40, 64)) < 3 and math.dist(mask_center(second), (90, 64)) < 3


FOCAL, CENTER = 150.0, np.array([0.3, 0.8, 4.0])


def box_depth(yaw, half=(0.6, 0.5, 0.35)):
    """Depth (1, h, w) of a box turned about the vertical, counterclockwise from above,
    by its slabs; 0 beside it.
    """
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    rays = np.stack([(x - SIZE / 2) / FOCAL, (y - SIZE / 2) / FOCAL, np.ones_like(x)], -1)
    angle = math.radians(yaw)
    # with y down, counterclockwise from above takes z (away) to -x
    turn = np.array(
        [[math.cos(angle), 0, -math.sin(angle)], [0, 1, 0], [math.sin(angle), 0, math.cos(angle)]]
    )
    local, origin = rays @ turn, -CENTER @ turn
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(side * np.array(half) - origin) / local for side in (-1, 1)])
    near, far = ends.min(0).max(-1), ends.max(0).min(-1)
    return torch.from_numpy(np.where(near < far, near, 0).astype(np.float32))[None]


@pytest.mark.parametrize(
    ("degrees", "units"), [(20, "metric"), (-35, "metric"), (0, "metric"), (30, "relative")]
)
def test_the_turn_of_a_box_is_measured(degrees, units):
    matrix = torch.tensor([[[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]]])
    first, second = box_depth(15), box_depth(15 + degrees)
    masks = [depth[0] > 0 for depth in (first, second)]
    wall = [torch.where(mask, depth, 7.0) for mask, depth in zip(masks, (first, second))]
    if units == "relative":
        wall[1] = 2.5 * wall[1]
    views = [View.from_depth(depth, units=units, intrinsics=matrix) for depth in wall]
    up = torch.tensor([0.0, -1.0, 0.0])
    regions = {"old": masks[0], "new": masks[1], "changed": masks[0] | masks[1]}
    turn = turn_of_object(*views, matrix, **regions, up=up)
    assert turn == pytest.approx(degrees, abs=2)


def test_the_turn_of_a_speck_is_not_measured():
    matrix = torch.tensor([[[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]]])
    view = View.from_depth(torch.full((1, SIZE, SIZE), 3.0), units="metric", intrinsics=matrix)
    speck = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    speck[5:8, 5:8] = True
    regions, up = dict.fromkeys(("old", "new", "changed"), speck), torch.tensor([0.0, -1.0, 0.0])
    assert turn_of_object(view, view, matrix, **regions, up=up) is None
