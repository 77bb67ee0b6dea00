"""Rotation of an object about the world's up in degrees, from the depths before and after."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry.camera import pixel_centers, unproject
from ..geometry.normals import normals_from_depth
from ..geometry.view import View, percentile
from .edit_camera import rotation_about
from .edit_change import grow_mask

_POINTS = 256  # of each side
_STEP = 5.0  # degrees of the first search
_ROUNDS = 6  # iterations of nearest neighbors and translation (ICP) for each angle
_TRIM = 0.8  # fraction of the points that are matched: a rotation hides some
_NORMAL_WEIGHT = 0.5  # of a unit normal, in radii of the object
_LEAST_PIXELS = 30
_TIE = 1.15  # within this ratio of the lowest cost the smallest rotation is taken


def turn_of_object(
    view: View, view_after: View, intrinsics: Tensor, *, old: Tensor, new: Tensor, changed: Tensor, up: Tensor
) -> float | None:
    """Rotation in degrees about `up` (3,), counterclockwise seen from above; None if too little is visible.

    Of equally good rotations of a symmetric shape the smallest is returned. `old`, `new`: masks (h, w) of the
    object before and after.
    """
    depth_after = view_after.depth[0] * _common_scale(view, view_after, changed)
    first = _surface(view.depth[0], intrinsics, view.mask[0] & old)
    second = _surface(depth_after, intrinsics, view_after.mask[0] & new)
    if first is None or second is None:
        return None
    radius = (first[0] - first[0].median(0).values).norm(dim=-1).median().clamp_min(1e-6)
    first, second = ((points / radius, normals) for points, normals in (first, second))
    angles = torch.arange(-180.0, 180.0, _STEP)
    costs = torch.stack([_cost(first, second, up, float(angle)) for angle in angles])
    near = angles[costs <= _TIE * costs.min()]
    start = float(near[near.abs().argmin()])
    # to the local minimum, then finer steps around it
    for step in (_STEP, 1.0, 0.25):
        fine = start + step * torch.arange(-4.0, 5.0)
        costs = torch.stack([_cost(first, second, up, float(angle)) for angle in fine])
        start = float(fine[costs.argmin()])
    return (start + 180.0) % 360.0 - 180.0


def _common_scale(view: View, view_after: View, changed: Tensor) -> float:
    """The factor that aligns the scales of relative depths on unchanged pixels; 1 for two metric depths."""
    if view.units == view_after.units == "metric":
        return 1.0
    both = view.mask[0] & view_after.mask[0] & ~changed
    if not bool(both.any()):
        return 1.0
    return float(percentile(view.depth[0][both] / view_after.depth[0][both], 50))


def _surface(depth: Tensor, intrinsics: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Some points (n, 3) of a masked surface with their normals, None for too few."""
    inner = grow_mask(mask, -1)
    normals = normals_from_depth(depth[None], intrinsics, mask[None])[0]
    inner = inner & (normals != 0).any(-1)
    if int(inner.sum()) < _LEAST_PIXELS:
        return None
    points = unproject(pixel_centers(*depth.shape, device=depth.device), depth, intrinsics[0])
    index = torch.linspace(0, int(inner.sum()) - 1, min(_POINTS, int(inner.sum()))).long().to(depth.device)
    return points[inner][index], normals[inner][index]


def _cost(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], up: Tensor, degrees: float) -> Tensor:
    """Trimmed mean distance of the two surfaces, in radii, after a turn and the best translation."""
    turn = rotation_about(up, torch.tensor(math.radians(degrees))).to(first[0])
    points, normals = first[0] @ turn.T, first[1] @ turn.T
    # points that face away after the rotation are not visible
    seen = (normals * points).sum(-1) < 0
    if int(seen.sum()) < 0.2 * len(points):
        return torch.tensor(math.inf)
    points, normals = points[seen], normals[seen]
    target = torch.cat([second[0], _NORMAL_WEIGHT * second[1]], -1)
    shift = second[0].median(0).values - points.median(0).values
    for _ in range(_ROUNDS):
        moved = torch.cat([points + shift, _NORMAL_WEIGHT * normals], -1)
        distances = torch.cdist(moved, target)
        nearest, index = distances.min(-1)
        kept = nearest <= percentile(nearest, 100 * _TRIM)
        shift = shift + (second[0][index[kept]] - points[kept] - shift).mean(0)
    back = distances.amin(0)
    return _trimmed(nearest) + _trimmed(back)


def _trimmed(values: Tensor) -> Tensor:
    return values[values <= percentile(values, 100 * _TRIM)].mean()
