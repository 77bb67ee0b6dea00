"""Tracks of a fused cloud: which views see each point, where, and how well they agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .align import Each
from .camera import invert_pose, project, transform_points, unproject
from .fusion import FusedCloud
from .points import PointCloud
from .view import View
from .view_votes import depth_ranges, is_seen, look_up


@dataclass(frozen=True)
class Tracks:
    """A cloud and its m observations, sorted by point, then by view; every point has at least one."""

    cloud: PointCloud
    point: Tensor  # (m,) int64, row of the cloud
    view: Tensor  # (m,) int64
    pixels: Tensor  # (m, 2): x, y, where the point projects to; pixel centers at +0.5
    # (n,) pixels: mean distance in the point's first view between the point and the other views' surfaces at
    # their observations of it
    errors: Tensor


def find_tracks(fused: FusedCloud, *, each: Each = iter) -> Tracks:
    """Observe each point in every view that has a surface there; points that none sees are left out."""
    view, points = fused.views, fused.cloud.points
    ranges = depth_ranges(view)
    found = []
    for index in each(list(range(len(view)))):
        pixels, depth, here = look_up(points, view, ranges, index)
        rows = is_seen(depth, here, fused.tolerance).nonzero()[:, 0]
        surface = _nearer_end(depth[rows], here[rows])
        found.append((rows, torch.full_like(rows, index), pixels[rows], surface))
    point, index, pixels, surface = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = (point * len(view) + index).argsort()
    point, index, pixels, surface = point[order], index[order], pixels[order], surface[order]
    kept, point = point.unique(return_inverse=True)
    if not len(kept):
        raise ValueError(
            "Expected points that at least one view sees, got none. Lower the voxel size, or raise the "
            "tolerance."
        )
    cloud = fused.cloud.select(kept)
    errors = _errors(cloud.points, view, point, index, _surface_points(view, index, pixels, surface))
    return Tracks(cloud, point, index, pixels, errors)


def _nearer_end(depth: Tensor, ranges: Tensor) -> Tensor:
    """Of the nearest and farthest depth of a look-up, the one nearer to the point's."""
    _, near, far = ranges.unbind(-1)
    return torch.where((depth - near).abs() <= (depth - far).abs(), near, far)


def _surface_points(view: View, index: Tensor, pixels: Tensor, depth: Tensor) -> Tensor:
    """World points (m, 3) at pixels (m, 2) and depths (m,) of the views `index` (m,)."""
    in_cam = unproject(pixels, depth, view.intrinsics[index])
    return transform_points(in_cam, invert_pose(view.world_to_cam)[index])


def _errors(points: Tensor, view: View, point: Tensor, index: Tensor, surface: Tensor) -> Tensor:
    """`Tracks.errors`; 0 for points of one observation."""
    count = torch.bincount(point, minlength=len(points))
    start = count.cumsum(0) - count
    first = index[start][point]  # each observation's point's first view

    def in_first(world: Tensor) -> Tensor:
        in_cam = transform_points(world, view.world_to_cam[first])
        return project(in_cam, view.intrinsics[first])[0]

    gap = (in_first(surface) - in_first(points[point])).norm(dim=-1)
    gap[start] = 0  # the first view's own
    total = torch.zeros(len(points), dtype=gap.dtype, device=gap.device).index_add_(0, point, gap)
    return total / (count - 1).clamp_min(1)
