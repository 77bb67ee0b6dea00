"""nerfstudio's transforms.json (docs.nerf.studio, "Data conventions"): each image with its own camera.

Its cameras look down -z with y up, and its world has z up; `applied_transform` states how the world of the
View's poses, which is y up, was turned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.camera import FLIP_Y_Z, invert_pose
from .colmap import PinholeCameras

Z_UP = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0), (0.0, 1.0, 0.0, 0.0))  # of a y-up world


def encode_transforms(cameras: PinholeCameras, paths: Sequence[str], *, points: str | None = None) -> bytes:
    """Cameras of the images at `paths`, relative to the file; `points` is the path of a PLY beside it."""
    turn = torch.tensor([*Z_UP, (0.0, 0.0, 0.0, 1.0)], dtype=torch.float64)
    flip = torch.tensor([*FLIP_Y_Z, 1.0], dtype=torch.float64)
    poses = turn @ invert_pose(cameras.world_to_cam) * flip
    frames = [
        {
            "file_path": path,
            "fl_x": matrix[0][0],
            "fl_y": matrix[1][1],
            "cx": matrix[0][2],
            "cy": matrix[1][2],
            "w": width,
            "h": height,
            "transform_matrix": pose,
        }
        for path, matrix, pose, (height, width) in zip(
            paths, cameras.intrinsics.tolist(), poses.tolist(), cameras.sizes, strict=True
        )
    ]
    data = {"camera_model": "OPENCV", "applied_transform": Z_UP, "units": cameras.units, "frames": frames}
    if points is not None:
        data["ply_file_path"] = points
    return json.dumps(data, indent=1).encode("ascii")


def turn_z_up(points: Tensor) -> Tensor:
    """Points or directions (n, 3) of a y-up world in the world of `transforms.json`."""
    return points @ points.new_tensor(Z_UP)[:, :3].T
