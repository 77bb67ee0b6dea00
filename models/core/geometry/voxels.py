"""Voxels: one point for all that lie in a cube."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .points import PointCloud

_MOST_CELLS = 1 << 21  # along a side: three such numbers fit into an int64


def merge_voxels(cloud: PointCloud, size: float) -> PointCloud:
    """The mean point, color and normal of each occupied cube of this size; `pixels` comes back empty."""
    if not len(cloud.points):
        return cloud
    which, count = _cells(cloud.points, size)

    def mean(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        # sums in float64: thousands of float32 points a voxel would lose digits
        total = torch.zeros(count, values.shape[1], dtype=torch.float64, device=values.device)
        total.index_add_(0, which, values.double())
        return (total / torch.bincount(which, minlength=count)[:, None]).to(values)

    normals = mean(cloud.normals)
    normals = None if normals is None else F.normalize(normals, dim=-1)
    return PointCloud(mean(cloud.points), mean(cloud.colors), normals, cloud.pixels[:0])


def _cells(points: Tensor, size: float) -> tuple[Tensor, int]:
    """The voxel of each point (n,), counted from 0, and how many there are."""
    low = points.amin(dim=0)
    sides = (points.amax(dim=0) - low).double()
    longest = float(sides.max())
    if len(points) > 1 and size > longest:
        shape = " x ".join(f"{side:.4g}" for side in sides.tolist())
        raise ValueError(
            f"Expected voxels smaller than the scene, which is {shape}, got a voxel size of {size:g}. Lower "
            "voxel_size."
        )
    if longest / size >= _MOST_CELLS:
        raise ValueError(
            f"Expected a voxel size of at least {longest / _MOST_CELLS:.3g} for a scene {longest:.4g} wide, "
            f"got {size:g}. Raise it, or set it to 0."
        )
    cell = ((points.double() - low.double()) / size).floor().long()
    key = (cell[:, 0] * _MOST_CELLS + cell[:, 1]) * _MOST_CELLS + cell[:, 2]
    kinds, which = key.unique(return_inverse=True)
    return which, len(kinds)
