"""A camera motion as yaw, pitch, distance ratio and zoom, and its error against a requested viewpoint.

Yaw is positive to the viewer's right, pitch is positive up and looks down, as in JoyAI-Image's prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry.camera import invert_pose
from ..geometry.normals import normals_from_depth
from ..geometry.view import View, percentile
from .edit_camera import CameraMotion, orbit_pose

_FLOOR_SLANT = 60.0  # largest angle in degrees between a floor's normal and the image's up
_FLOOR_WINDOW = 8.0  # degrees; normals this close to the floor's are floor
_LEAST_FLOOR = 0.02  # least fraction of the pixels
_LEAST_TURN = 4.0  # degrees between the optical axes, below which their crossing is not defined


@dataclass(frozen=True)
class Viewpoint:
    """A camera motion: angles in degrees, lengths in the depth's unit."""

    yaw_degrees: float
    pitch_degrees: float
    translation: tuple[float, float, float]  # right, up, forward, of the camera before
    distance_ratio: float  # distance to the pivot after, of that before
    focal_ratio: float
    pivot: float  # depth of the point that the distance is measured to

    @property
    def magnification(self) -> float:
        """How much larger the pivot appears after."""
        return self.focal_ratio / self.distance_ratio


def find_up(view: View, intrinsics: Tensor) -> Tensor:
    """The world's up (3,) in the camera frame of a View with batch 1: of its pose, else of the floor that its
    depth shows, else the image's."""
    upright = torch.tensor([0.0, -1.0, 0.0], device=view.depth.device)
    if view.world_to_cam is not None:
        return view.world_to_cam[0, :3, 1]
    normals = normals_from_depth(view.depth, intrinsics, view.mask)[0].reshape(-1, 3)
    known = (normals != 0).any(-1)
    slant = normals @ upright
    floor = normals[known & (slant > math.cos(math.radians(_FLOOR_SLANT)))]
    if len(floor) < _LEAST_FLOOR * len(normals):
        return upright
    # mode of the candidates' directions
    seeds = floor[torch.linspace(0, len(floor) - 1, min(64, len(floor))).long()]
    window = math.cos(math.radians(_FLOOR_WINDOW))
    best = seeds[((seeds @ floor.T) > window).sum(-1).argmax()]
    for _ in range(4):
        best = F.normalize(floor[(floor @ best) > window].mean(0), dim=0)
    return best


def describe_motion(motion: CameraMotion, view: View, up: Tensor) -> Viewpoint:
    """Yaw, pitch, translation and distance ratio of a motion in the frame of the camera before."""
    device = up.device
    forward = torch.tensor([0.0, 0.0, 1.0], device=device)
    to_before = invert_pose(motion.pose)
    after, center = to_before[:3, 2], to_before[:3, 3]
    right = F.normalize(torch.linalg.cross(forward, up), dim=0)
    ahead = torch.linalg.cross(up, right)
    yaw = -math.degrees(math.atan2(float(after @ right), float(after @ ahead)))
    pitch = math.degrees(
        math.asin(max(-1, min(1, float(forward @ up)))) - math.asin(max(-1, min(1, float(after @ up))))
    )
    pivot = find_pivot(motion, view)
    distance = float((torch.tensor([0.0, 0.0, pivot], device=device) - center).norm())
    shift = tuple(float(value) for value in (center[0], -center[1], center[2]))
    return Viewpoint(yaw, pitch, shift, distance / pivot, motion.focal_ratio, pivot)


def find_pivot(motion: CameraMotion, view: View) -> float:
    """Depth of the point that the camera turns about: where the optical axes pass each other, else the
    median depth of the image's middle."""
    height, width = view.depth.shape[1:]
    middle = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    depth = view.depth[0][middle][view.mask[0][middle]]
    usual = float(percentile(depth if depth.numel() else view.depth[view.mask], 50))
    to_before = invert_pose(motion.pose)
    axis, center = to_before[:3, 2], to_before[:3, 3]
    cosine = float(axis[2])
    if abs(cosine) > math.cos(math.radians(_LEAST_TURN)):
        return usual
    # the point of the first axis that is nearest to the second
    depth = float(center[2] - cosine * (axis @ center)) / (1 - cosine**2)
    return depth if usual / 4 < depth < usual * 4 else usual


def viewpoint_error(
    motion: CameraMotion, view: Viewpoint, up: Tensor, *, yaw: float, pitch: float
) -> float | None:
    """SpatialEdit-Bench's viewpoint error against a requested orbit: half of the sum of the
    camera centers' distance over the requested one, and the rotation angle over 90 degrees. None if the
    requested camera does not move.

    The distance to the pivot is the measured one: prompts state no length.
    """
    numbers = (yaw, pitch, view.pivot, view.distance_ratio)
    requested = orbit_pose(*(torch.tensor(float(number)) for number in numbers), up=up).to(motion.pose)
    centers = [invert_pose(pose)[:3, 3] for pose in (requested, motion.pose)]
    distance = float(centers[0].norm())
    if distance < 1e-3 * view.pivot:
        return None
    shift_error = float((centers[1] - centers[0]).norm()) / distance
    return 0.5 * (shift_error + angle_between(requested, motion.pose) / 90)


def angle_between(pose: Tensor, other: Tensor) -> float:
    """Angle of the rotation between two poses (4, 4), in degrees."""
    rotation = (pose[:3, :3].T @ other[:3, :3]).double()
    sine = torch.stack(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    return math.degrees(math.atan2(float(sine.norm()) / 2, (float(torch.trace(rotation)) - 1) / 2))
