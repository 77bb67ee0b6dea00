"""Implausible solids in an image, detected from its maps: hanging in mid-air, or with a broken outline.

Every solid of the world stands on level ground and is convex, so neither test depends on its shape. The maps
are exact or predicted; predictor_evaluation.py measures the error rates with predicted ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from .scene_maps import SceneMaps

# minimum upward component of the ground's normal: cameras of the world look down by at most 27 degrees
UP = 0.65
# natural logarithm of a depth ratio: ground farther behind a foot does not touch it; a ball overhangs by up
# to 0.125
GAP = 0.15
BELOW = range(2, 8)  # rows below a solid where the ground is measured; nearer ones are blurred
LEAST_ROWS = 3
FOOT = 2  # rows above a solid's lowest that belong to its foot
# minimum fraction of its convex hull that a solid fills: 1 in exact maps, less with predicted edges
FILLED = 0.92


@dataclass(frozen=True)
class Plausibility:
    """Numbers of solids of one image: all, hanging, broken."""

    solids: int
    hanging: int
    broken: int


def examine(maps: SceneMaps) -> list[Plausibility]:
    """Test every solid of each image."""
    found = []
    for disparity, normals, segments in zip(maps.disparity, maps.normals, maps.segments, strict=True):
        numbers = [number for number in segments.unique().tolist() if number > 0]
        hanging = sum(is_hanging(disparity, normals, segments, number) for number in numbers)
        broken = sum(is_broken(segments, number) for number in numbers)
        found.append(Plausibility(len(numbers), hanging, broken))
    return found


def is_hanging(disparity: Tensor, normals: Tensor, segments: Tensor, number: int) -> bool:
    """Whether the segment `number` (maps (h, w)) has no ground below its foot, or only ground well behind it.

    The ground's disparity is linear in the row, so a line through the rows below extrapolates it to the foot.
    A solid whose foot is cut off by the image border or occluded by another solid counts as standing.
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
    foot = disparity[max(0, lowest - FOOT) : lowest + 1][:, columns][
        inside[max(0, lowest - FOOT) : lowest + 1][:, columns]
    ].median()
    at_foot = extend_ground(torch.tensor(rows), disparity[rows][:, columns], ground, lowest)
    return at_foot is not None and float(foot) > 0 and float(torch.log(foot / at_foot)) > GAP


def extend_ground(rows: Tensor, disparity: Tensor, ground: Tensor, row: int) -> Tensor | None:
    """The ground's disparity at `row`, extrapolated from pixels (n, m) where `ground` is True.

    None if too few rows have any.
    """
    has_some = ground.any(1)
    if int(has_some.sum()) < LEAST_ROWS:
        return None
    middle = torch.stack(
        [values[known].median() for values, known in zip(disparity[has_some], ground[has_some])]
    ).double()
    offset = (rows[has_some] - row).double()
    slope, level = np.polyfit(offset.numpy(), middle.numpy(), 1)
    # disparity of ground grows towards the viewer; if noise tilts the line the other way, use the mean
    return torch.tensor(max(level, 1e-6)) if slope >= 0 else middle.mean()


def is_broken(segments: Tensor, number: int) -> bool:
    """Whether the segment `number` of (h, w) is not convex: it fills too little of its hull outside other
    segments.

    The hull of the pixel centers of a convex object is inside the object, so every pixel with its center in
    that hull belongs to the object.
    """
    rows, columns = torch.nonzero(segments == number, as_tuple=True)
    try:
        hull = ConvexHull(torch.stack((columns, rows), 1).double().numpy())
    except QhullError:  # pixels in one line
        return True
    height, width = segments.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = torch.from_numpy(hull.equations)
    within = (
        planes[:, 0, None, None] * x + planes[:, 1, None, None] * y + planes[:, 2, None, None] <= 1e-6
    ).all(0)
    hidden = within & (segments > 0) & (segments != number)
    return len(rows) < FILLED * float((within & ~hidden).sum())
