"""VGGT's pose encoding: nine numbers a camera <-> world_to_cam and intrinsics in pixels.

(tx, ty, tz, quaternion x y z w, vertical field of view, horizontal field of view), angles in radians, OpenCV
cameras, the first camera's frame as the world.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def encode_poses(world_to_cam: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Poses (..., 3 or 4, 4) and intrinsics (..., 3, 3) in pixels of a map of `size` (h, w) -> (..., 9).

    The quaternion's w is at least 0. Principal points are not encoded.
    """
    focal = torch.stack((intrinsics[..., 1, 1], intrinsics[..., 0, 0]), dim=-1)
    angles = 2 * torch.atan(focal.new_tensor(size) / (2 * focal))
    rotation, shift = world_to_cam[..., :3, :3], world_to_cam[..., :3, 3]
    return torch.cat((shift, rotation_to_quaternion(rotation), angles), dim=-1)


def decode_poses(encoding: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(..., 9) -> world_to_cam (..., 3, 4), and intrinsics (..., 3, 3) in pixels of a map of `size` (h, w).

    The principal point is the middle, in a frame where an image spans [0, width] x [0, height].
    """
    height, width = size
    pose = torch.cat((quaternion_to_rotation(encoding[..., 3:7]), encoding[..., :3, None]), dim=-1)
    intrinsics = encoding.new_zeros(*encoding.shape[:-1], 3, 3)
    intrinsics[..., 0, 0] = width / 2 / torch.tan(encoding[..., 8] / 2)
    intrinsics[..., 1, 1] = height / 2 / torch.tan(encoding[..., 7] / 2)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = width / 2, height / 2, 1
    return pose, intrinsics


def quaternion_to_rotation(quaternion: Tensor) -> Tensor:
    """(..., 4) as x y z w, of any length above 0 -> (..., 3, 3)."""
    x, y, z, w = quaternion.unbind(-1)
    two = 2 / quaternion.square().sum(-1)
    rows = [
        1 - two * (y * y + z * z), two * (x * y - z * w), two * (x * z + y * w),
        two * (x * y + z * w), 1 - two * (x * x + z * z), two * (y * z - x * w),
        two * (x * z - y * w), two * (y * z + x * w), 1 - two * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rotation_to_quaternion(rotation: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 4) as x y z w of length 1, w >= 0; division is by the largest component."""
    entries = rearrange(rotation, "... i j -> (i j) ...")
    xx, xy, xz, yx, yy, yz, zx, zy, zz = entries
    trace = xx + yy + zz
    # row i is the quaternion times 4 times its component i
    rows = [
        [1 + 2 * xx - trace, xy + yx, xz + zx, zy - yz],
        [xy + yx, 1 + 2 * yy - trace, yz + zy, xz - zx],
        [xz + zx, yz + zy, 1 + 2 * zz - trace, yx - xy],
        [zy - yz, xz - zx, yx - xy, 1 + trace],
    ]
    table = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    largest = torch.diagonal(table, dim1=-2, dim2=-1).argmax(-1)
    chosen = table.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    quaternion = chosen / chosen.norm(dim=-1, keepdim=True)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def relative_to_first(world_to_cam: Tensor) -> Tensor:
    """Poses (..., v, 3 or 4, 4) with the first camera's frame as the world -> (..., v, 3, 4)."""
    rotation, shift = world_to_cam[..., :3, :3], world_to_cam[..., :3, 3:]
    turned = rotation @ rotation[..., :1, :, :].transpose(-1, -2)
    return torch.cat((turned, shift - turned @ shift[..., :1, :, :]), dim=-1)
