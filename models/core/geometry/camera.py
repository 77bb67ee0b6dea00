"""Pinhole cameras: intrinsics, projection, poses, and ComfyUI's camera packet.

Camera frame: OpenCV (x right, y down, z forward). Pixel centers lie at +0.5: an image spans [0, width] x
[0, height]. World frame: right-handed, y up. ``world_to_cam`` maps world points to the camera frame,
``p_cam = R p_world + t``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Horizontal degrees of an unknown camera: as Modality Forcing's published point clouds assume.
ASSUMED_FOV = 65.0
# OpenCV (y down, z forward) <-> glTF and three.js (y up, looks down -z); its own inverse.
FLIP_Y_Z = (1.0, -1.0, -1.0)
_LONGEST_FOCAL = 100  # in widths of an image: half a degree, beyond any lens
_CROOKED = 0.05  # of a rotation times its transpose, from identity: half precision's rounding is below


def intrinsics_from_fov(fov_degrees_horizontal: float | Tensor, width: int, height: int) -> Tensor:
    """Intrinsics of a centered camera with square pixels: a number gives (3, 3), a tensor of shape ``b``
    gives (b, 3, 3).
    """
    fov = torch.as_tensor(fov_degrees_horizontal, dtype=torch.float32)
    if not bool(((fov > 0) & (fov < 180)).all()):
        raise ValueError(
            f"Expected a horizontal field of view above 0 and below 180 degrees, got {fov.tolist()}. Correct "
            "it."
        )
    if width < 1 or height < 1:
        raise ValueError(
            f"Expected a width and height of at least 1 pixel, got {width} x {height}. Correct them."
        )
    focal = 0.5 * width / torch.tan(torch.deg2rad(fov) / 2)
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    rows = [focal, zero, one * (width / 2), zero, focal, one * (height / 2), zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def scale_intrinsics(intrinsics: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Intrinsics (..., 3, 3) in pixels of a map of `size` (h, w), for the map resized to `new_size`."""
    ratios = [new_size[1] / size[1], new_size[0] / size[0], 1.0]
    return intrinsics * intrinsics.new_tensor(ratios)[:, None]  # pixel centers at +0.5: the whole rows


def fov_from_intrinsics(intrinsics: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Full horizontal and vertical angle in degrees, each ``...``, of (..., 3, 3).

    Valid for off-center principal points too.
    """
    left, right = intrinsics[..., 0, 2], width - intrinsics[..., 0, 2]
    top, bottom = intrinsics[..., 1, 2], height - intrinsics[..., 1, 2]
    focal_x, focal_y = intrinsics[..., 0, 0], intrinsics[..., 1, 1]
    horizontal = torch.atan2(left, focal_x) + torch.atan2(right, focal_x)
    vertical = torch.atan2(top, focal_y) + torch.atan2(bottom, focal_y)
    return torch.rad2deg(horizontal), torch.rad2deg(vertical)


def check_intrinsics(intrinsics: Tensor, height: int, width: int) -> None:
    """Refuse intrinsics (b, 3, 3) that cannot be in pixels of a ``height`` x ``width`` map.

    The principal point may lie outside the map, which can be a crop. If it is in its first pixel, with a
    focal length that is short for pixels, the intrinsics are in widths and heights (MoGe's form, 0.5 in the
    middle) or from -1 to 1.
    """
    matrices = intrinsics.detach().cpu().double()
    for index, matrix in enumerate(matrices):
        (focal_x, _, center_x), (slant, focal_y, center_y), last = matrix.tolist()
        where = f"intrinsics in pixels of a map {width} x {height} (camera {index})"
        if not bool(matrix.isfinite().all()):
            raise ValueError(
                f"Expected {where}, got numbers that are not finite. Leave the intrinsics out, or correct "
                "them."
            )
        if abs(slant) > 1e-4 or any(
            abs(got - exact) > 1e-4 for got, exact in zip(last, (0, 0, 1), strict=True)
        ):
            raise ValueError(
                f"Expected {where} as [[fx, s, cx], [0, fy, cy], [0, 0, 1]], got {_rounded(matrix)}. "
                "Transpose or divide them so."
            )
        if not (focal_x > 0 and focal_y > 0):
            raise ValueError(
                f"Expected {where}, got focal lengths of {focal_x:.6g} and {focal_y:.6g}. They are above 0: "
                "correct them."
            )
        in_first_pixel = abs(center_x) < 1 and abs(center_y) < 1 and height * width > 1
        if in_first_pixel and (focal_x < max(width, _LONGEST_FOCAL) or focal_y < max(height, _LONGEST_FOCAL)):
            raise ValueError(
                f"Expected {where}, got a principal point of ({center_x:.6g}, {center_y:.6g}), which is not "
                "in pixels. Of intrinsics in widths and heights, multiply the first row by the width and "
                "the second by the height."
            )


def check_pose(world_to_cam: Tensor) -> None:
    """Refuse (b, 4, 4) that are not rigid: rotation, translation, and 0 0 0 1 below."""
    for index, matrix in enumerate(world_to_cam.detach().cpu().double()):
        rotation = matrix[:3, :3]
        if not bool(matrix.isfinite().all()):
            raise ValueError(
                f"Expected a pose (world_to_cam, camera {index}), got numbers that are not finite. Leave it "
                "out."
            )
        if bool((matrix[3] - matrix.new_tensor([0, 0, 0, 1])).abs().max() > 1e-4):
            raise ValueError(
                f"Expected 0 0 0 1 as the last row of the pose (world_to_cam, camera {index}), got "
                f"{_rounded(matrix[3])}. Transpose it."
            )
        crooked = (rotation @ rotation.T - torch.eye(3, dtype=rotation.dtype)).abs().max()
        if float(crooked) > _CROOKED or float(torch.linalg.det(rotation)) < 0:
            raise ValueError(
                f"Expected a rotation in the pose (world_to_cam, camera {index}), got a matrix that scales, "
                f"bends or mirrors: {_rounded(rotation)}. Divide out its scale, or leave it out."
            )


def pad_pose(pose: Tensor) -> Tensor:
    """Poses (..., 3, 4), as DA3 and VGGT write them, with the row 0 0 0 1 added; other shapes unchanged."""
    if pose.shape[-2:] != (3, 4):
        return pose
    last = pose.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*pose.shape[:-2], 1, 4)
    return torch.cat([pose, last], dim=-2)


def _rounded(matrix: Tensor) -> list:
    """Numbers for a message."""
    return torch.round(matrix, decimals=4).tolist()


def pixel_centers(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """The center (x, y) of each pixel: (h, w, 2) float32, the first one (0.5, 0.5)."""
    y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def _per_camera(matrix: Tensor, points: Tensor) -> Tensor:
    """Give (b, n, m) the singleton axes that broadcast it over the points (b, ..., 3).

    (n, m) serves any points.
    """
    if matrix.ndim == 2:
        return matrix
    return matrix.reshape(matrix.shape[:1] + (1,) * (points.ndim - 2) + matrix.shape[1:])


def project(points_cam: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Camera points (b, ..., 3) by (b, 3, 3) (or (..., 3) by (3, 3)) to pixels (b, ..., 2) and z-depth (b,
    ...).

    Only points with z > 0 are in front of the camera; the pixels of the others are undefined, and the caller
    masks them by the depth.
    """
    matrix = _per_camera(intrinsics, points_cam)
    homogeneous = (matrix @ points_cam.unsqueeze(-1)).squeeze(-1)
    return homogeneous[..., :2] / homogeneous[..., 2:], points_cam[..., 2]


def unproject(pixels: Tensor, depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels (b, ..., 2) at z-depth (b, ...) by (b, 3, 3) (or without b) to camera points (b, ..., 3)."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    matrix = _per_camera(torch.linalg.inv(intrinsics), homogeneous)
    return (matrix @ homogeneous.unsqueeze(-1)).squeeze(-1) * depth.unsqueeze(-1)


def transform_points(points: Tensor, pose: Tensor) -> Tensor:
    """Rigidly move points (b, ..., 3) by (b, 4, 4) (or (..., 3) by (4, 4))."""
    rotation, shift = _per_camera(pose[..., :3, :3], points), pose[..., :3, 3]
    if shift.ndim == 2:
        shift = shift.reshape(shift.shape[:1] + (1,) * (points.ndim - 2) + (3,))
    return (rotation @ points.unsqueeze(-1)).squeeze(-1) + shift


def invert_pose(pose: Tensor) -> Tensor:
    """The inverse of a rigid (..., 4, 4): world_to_cam <-> cam_to_world."""
    rotation = pose[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(pose)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3:] = -rotation @ pose[..., :3, 3:]
    inverse[..., 3, 3] = 1
    return inverse


def look_at(eye: Tensor | tuple[float, ...], target: Tensor | tuple[float, ...]) -> Tensor:
    """World_to_cam (..., 4, 4) (OpenCV) of an upright camera at ``eye``, looking at ``target``, both (..., 3)
    in a y-up world.

    Straight up or down, "upright" is undefined: the top of the image is then -z looking down, +z looking up.
    """
    eye, target = torch.as_tensor(eye, dtype=torch.float32), torch.as_tensor(target, dtype=torch.float32)
    eye, target = torch.broadcast_tensors(eye, target)
    distance = (target - eye).norm(dim=-1, keepdim=True)
    if not bool((distance > 0).all()):
        raise ValueError(
            "Expected an eye and a target that differ, got one point for both. Move one of them."
        )
    forward = (target - eye) / distance
    upright, on_the_pole = torch.zeros_like(forward), torch.zeros_like(forward)
    upright[..., 1] = 1
    on_the_pole[..., 2] = torch.sign(forward[..., 1])
    right = torch.linalg.cross(forward, upright)
    right = torch.where(
        right.norm(dim=-1, keepdim=True) > 1e-6, right, torch.linalg.cross(forward, on_the_pole)
    )
    right = right / right.norm(dim=-1, keepdim=True)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)
    pose = torch.zeros(eye.shape[:-1] + (4, 4), device=eye.device)
    pose[..., :3, :3] = rotation
    pose[..., :3, 3:] = -rotation @ eye.unsqueeze(-1)
    pose[..., 3, 3] = 1
    return pose


def upright_world(world_to_cam: Tensor) -> Tensor:
    """A pose (..., 4, 4) of an OpenCV world (y down, as VGGT's and DA3's) for the same world turned y up."""
    return world_to_cam * torch.tensor([*FLIP_Y_Z, 1.0], dtype=world_to_cam.dtype, device=world_to_cam.device)


def _xyz(vector: Tensor) -> dict[str, float]:
    return dict(zip("xyz", vector.tolist(), strict=True))


def camera_info(
    intrinsics: Tensor,
    width: int,
    height: int,
    world_to_cam: Tensor | None = None,
    *,
    target_distance: float = 1.0,
    near: float = 0.01,
    far: float = 1000.0,
) -> dict[str, Any]:
    """One camera as ComfyUI's LOAD3D_CAMERA: right-handed, y up, looks down -z; fov is vertical, in degrees.

    ``intrinsics`` is (3, 3), ``world_to_cam`` (4, 4) of a y-up world; without it the camera is at the origin
    of its own frame in glTF axes, like the points of our PLY files of one view. The packet has no principal
    point: an off-center one is shown centered, with the same focal length. ``target_distance`` is the
    distance of the viewer's orbit center.
    """
    from scipy.spatial.transform import Rotation

    if intrinsics.shape != (3, 3) or (world_to_cam is not None and world_to_cam.shape != (4, 4)):
        pose = None if world_to_cam is None else tuple(world_to_cam.shape)
        raise ValueError(
            f"Expected one camera, intrinsics (3, 3) and a pose (4, 4), got {tuple(intrinsics.shape)} and "
            f"{pose}. Pick one of the batch."
        )
    flip = torch.tensor(FLIP_Y_Z, dtype=torch.float64)
    own_frame = torch.diag(torch.cat([flip, flip.new_ones(1)]))
    pose = own_frame if world_to_cam is None else world_to_cam.detach().to("cpu", torch.float64)
    cam_to_world = invert_pose(pose)
    position, forward = cam_to_world[:3, 3], cam_to_world[:3, 2]
    quaternion = Rotation.from_matrix((cam_to_world[:3, :3] * flip).numpy()).as_quat(canonical=True)
    focal_x, focal_y = float(intrinsics[0, 0]), float(intrinsics[1, 1])
    return {
        "position": _xyz(position),
        "target": _xyz(position + target_distance * forward),
        "zoom": 1.0,
        "cameraType": "perspective",
        "quaternion": dict(zip("xyzw", quaternion.tolist(), strict=True)),
        "fov": math.degrees(2 * math.atan(height / (2 * focal_y))),
        "aspect": (width / focal_x) / (height / focal_y),
        "near": float(near),
        "far": float(far),
    }


def resize_camera(info: dict[str, Any], middle: Tensor, unit: float) -> dict[str, Any]:
    """A LOAD3D_CAMERA for the same scene moved so that ``middle`` (3,) is the origin and scaled by 1 /
    ``unit``: the rendered image is the same.
    """
    vectors = {
        name: torch.tensor([info[name][axis] for axis in "xyz"], dtype=torch.float64)
        for name in ("position", "target")
    }
    moved = {name: _xyz((vector - middle.detach().cpu().double()) / unit) for name, vector in vectors.items()}
    return {**info, **moved, "near": info["near"] / unit, "far": info["far"] / unit}
