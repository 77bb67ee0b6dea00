"""Views as witnesses of each other's points: one agrees with a point, sees through it, or has it hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .camera import project, transform_points
from .view import View


@dataclass(frozen=True)
class Votes:
    """The votes of the other views on one view's points."""

    agree: Tensor  # (n,) int32, views with a surface at the point
    against: Tensor  # (n,) int32, views that show something clearly behind it
    shared: Tensor  # (v,) int64, points of which each view knows the depth there


def count_votes(points: Tensor, own: int, view: View, ranges: Tensor, tolerance: float) -> Votes:
    """Votes on the world points (n, 3) of the view `own`; `ranges` are the `depth_ranges` of all views."""
    agree = torch.zeros(len(points), dtype=torch.int32, device=points.device)
    against = torch.zeros_like(agree)
    shared = torch.zeros(len(view), dtype=torch.int64)
    for other in range(len(view)):
        if other != own:
            _, depth, found = look_up(points, view, ranges, other)
            through, near, _ = found.unbind(-1)
            agree += is_seen(depth, found, tolerance)
            against += depth < (1 - tolerance) * through
            shared[other] = int(((near > 0) | through.isinf()).sum())
    return Votes(agree, against, shared)


def depth_ranges(view: View) -> Tensor:
    """Of each pixel with its right and lower neighbors (b, h, w, 3): up to where all four see through, their
    nearest and their farthest depth.

    Sky is seen through to infinity, a hole not at all; nearest and farthest are 0 where all four are holes or
    sky.
    """
    far = torch.full_like(view.depth, torch.inf)
    through = view.depth if view.sky is None else torch.where(view.sky, far, view.depth)
    nearest = -_largest_of_four(-torch.where(view.mask, view.depth, far))
    parts = (-_largest_of_four(-through), nearest.nan_to_num(posinf=0.0), _largest_of_four(view.depth))
    return torch.stack(parts, dim=-1)


def _largest_of_four(maps: Tensor) -> Tensor:
    return F.max_pool2d(F.pad(maps, (0, 1, 0, 1), mode="replicate"), 2, stride=1)


def is_seen(depth: Tensor, ranges: Tensor, tolerance: float) -> Tensor:
    """Whether a view has a surface at the depth (n,) of points, up to a relative tolerance."""
    _, near, far = ranges.unbind(-1)
    at_near, at_far = ((depth - end).abs() <= tolerance * end for end in (near, far))
    return (at_near | at_far) & (near > 0)


def look_up(points: Tensor, view: View, ranges: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (n, 2), z-depth (n,) and `depth_ranges` there (n, 3) of world points (n, 3) in one view.

    The ranges are 0 for points behind the camera or outside the image.
    """
    pixels, depth = project(transform_points(points, view.world_to_cam[index]), view.intrinsics[index])
    size = pixels.new_tensor(ranges.shape[2:0:-1])
    inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels <= size).all(-1)
    corner = torch.where(inside[:, None], (pixels - 0.5).floor(), torch.zeros_like(pixels))
    column, row = torch.minimum(corner.clamp_min(0), size - 1).long().unbind(-1)
    found = ranges[index, row, column]
    return pixels, depth, torch.where(inside[:, None], found, torch.zeros_like(found))
