"""What no picture of the world shows, told from its maps alone: a thing that hangs in the air, a thing whose outline is broken.

Every solid of the world stands on level ground and is convex, so both can be told without knowing which solid it is. The maps may be exact
ones or a network's; how often the latter err is measured in predictor_evaluation.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from .scene_maps import SceneMaps

UP = 0.65  # least upward part of a normal that belongs to the ground: cameras of the world look down by 27 degrees at most
GAP = 0.15  # natural logarithm: ground this much farther than a foot does not touch it; a ball overhangs by up to 0.125
BELOW = range(2, 8)  # rows under a solid in which the ground is read; nearer ones are blurred
LEAST_ROWS = 3
FOOT = 2  # rows above a solid's lowest that still count as its foot
FILLED = 0.92  # least share of its convex hull that a whole solid fills: exactly all of it, but for a network's wavering edges


@dataclass(frozen=True)
class Plausibility:
    """How many solids of one picture were looked at, hang, and are broken."""

    solids: int
    hanging: int
    broken: int


def examine(maps: SceneMaps) -> list[Plausibility]:
    """Each picture's solids, one by one."""
    found = []
    for picture in range(len(maps)):
        parts = (maps.disparity[picture], maps.normals[picture], maps.segments[picture])
        numbers = [number for number in parts[2].unique().tolist() if number > 0]
        hanging = sum(is_hanging(*parts, number) for number in numbers)
        found.append(Plausibility(len(numbers), hanging, sum(is_broken(parts[2], number) for number in numbers)))
    return found


def is_hanging(disparity: Tensor, normals: Tensor, segments: Tensor, number: int) -> bool:
    """Whether the segment `number` of h w stands on nothing: under its foot is no ground, or ground well behind it.

    The ground's disparity is linear in the row, so a line through the rows below tells it at the foot itself. A foot that the picture's
    edge cuts off or another solid hides is taken to stand.
    """
    height = len(segments)
    inside = segments == number
    lowest = int(torch.nonzero(inside.any(1)).max())
    columns = torch.nonzero(inside[max(0, lowest - FOOT) : lowest + 1].any(0)).flatten()
    rows = [row for row in (lowest + step for step in BELOW) if row < height]
    if len(rows) < LEAST_ROWS:
        return False
    under = segments[rows][:, columns]
    if float((under > 0).double().mean()) > 0.5:
        return False
    ground = (under == 0) & (-normals[rows][:, columns, 1] > UP) & (disparity[rows][:, columns] > 0)
    if float(ground.double().mean()) < 0.5:
        return True
    foot = disparity[max(0, lowest - FOOT) : lowest + 1][:, columns][inside[max(0, lowest - FOOT) : lowest + 1][:, columns]].median()
    at_foot = extend_ground(torch.tensor(rows), disparity[rows][:, columns], ground, lowest)
    return at_foot is not None and float(foot) > 0 and float(torch.log(foot / at_foot)) > GAP


def extend_ground(rows: Tensor, disparity: Tensor, ground: Tensor, row: int) -> Tensor | None:
    """The ground's disparity at `row` from that of n rows by m columns, where `ground` is True; None where too few rows have any."""
    has_some = ground.any(1)
    if int(has_some.sum()) < LEAST_ROWS:
        return None
    middle = torch.stack([values[known].median() for values, known in zip(disparity[has_some], ground[has_some])]).double()
    offset = (rows[has_some] - row).double()
    slope, level = np.polyfit(offset.numpy(), middle.numpy(), 1)
    # ground never rises against the viewer: noise may tilt the line so, and then the rows' mean serves
    return torch.tensor(max(level, 1e-6)) if slope >= 0 else middle.mean()


def is_broken(segments: Tensor, number: int) -> bool:
    """Whether the segment `number` of h w is no convex thing: it fills too little of its hull, not counting what other segments cover.

    The hull of the centres of a convex thing's pixels lies inside the thing, so each pixel with its centre in that hull is the thing's.
    """
    rows, columns = torch.nonzero(segments == number, as_tuple=True)
    try:
        hull = ConvexHull(torch.stack((columns, rows), 1).double().numpy())
    except QhullError:  # pixels in one line
        return True
    height, width = segments.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = torch.from_numpy(hull.equations)
    within = (planes[:, 0, None, None] * x + planes[:, 1, None, None] * y + planes[:, 2, None, None] <= 1e-6).all(0)
    hidden = within & (segments > 0) & (segments != number)
    return len(rows) < FILLED * float((within & ~hidden).sum())
