"""COLMAP's text model: cameras.txt, images.txt and points3D.txt (colmap.github.io/format.html).

Poses are world to camera in OpenCV axes and pixel centers lie at +0.5, as in a View, so that nothing is
turned: the world stays that of the View's poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..geometry.tracks import Tracks
from ..geometry.view import View
from .png8 import to_uint8

_GREY = 128  # of points without colors
_MOST_SKEW = 1e-3  # pixels, which no picture shows


@dataclass(frozen=True)
class PinholeCameras:
    """The cameras of some images, on the CPU in float64."""

    intrinsics: Tensor  # (b, 3, 3) in pixels of the images, without skew
    world_to_cam: Tensor  # (b, 4, 4)
    sizes: tuple[tuple[int, int], ...]  # height, width of each
    units: str

    @classmethod
    def of_view(
        cls, view: View, size: tuple[int, int], crops: Sequence[tuple[int, int]] | None = None
    ) -> PinholeCameras:
        """The cameras of a View for its images at another size, of which `crops` are left, from the upper
        left corner. ValueError for a skewed camera, which no trainer's format has.
        """
        intrinsics = view.intrinsics.detach().cpu().double()
        for index, slant in enumerate(intrinsics[:, 0, 1].tolist()):
            if abs(slant) > _MOST_SKEW:
                raise ValueError(
                    f"Expected cameras without skew, got {slant:.4g} in camera {index}. Resample its image, "
                    "or leave the view out."
                )
        scale = intrinsics.new_tensor([[size[1] / view.depth.shape[2]], [size[0] / view.depth.shape[1]], [1]])
        sizes = tuple(crops) if crops is not None else (size,) * len(view)
        return cls(intrinsics * scale, view.world_to_cam.detach().cpu().double(), sizes, view.units)


def encode_cameras(cameras: PinholeCameras) -> bytes:
    """One PINHOLE camera for each image; numbers count from 1."""
    lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[] = fx, fy, cx, cy"]
    both = zip(cameras.intrinsics.tolist(), cameras.sizes, strict=True)
    for number, (matrix, (height, width)) in enumerate(both, 1):
        values = (matrix[0][0], matrix[1][1], matrix[0][2], matrix[1][2])
        lines.append(f"{number} PINHOLE {width} {height} {_numbers(values)}")
    return _to_bytes(lines)


def encode_images(cameras: PinholeCameras, tracks: Tracks, names: Sequence[str]) -> bytes:
    """Pose, camera, name and observations of each image; image and camera have one number."""
    from scipy.spatial.transform import Rotation

    lines = [
        "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "# POINTS2D[] as X, Y, POINT3D_ID",
        f"# units: {cameras.units}",
    ]
    for index, (name, pose) in enumerate(zip(names, cameras.world_to_cam.numpy(), strict=True)):
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat(canonical=True)
        lines.append(f"{index + 1} {_numbers((w, x, y, z, *pose[:3, 3]))} {index + 1} {name}")
        rows = (tracks.view == index).nonzero()[:, 0]
        places, points = tracks.pixels[rows].tolist(), tracks.point[rows].tolist()
        seen = zip(places, points, strict=True)
        lines.append(" ".join(f"{x:.4f} {y:.4f} {point + 1}" for (x, y), point in seen))
    return _to_bytes(lines)


def encode_points(tracks: Tracks) -> bytes:
    """Position, color, error in pixels and track of each point; point numbers count from 1."""
    cloud = tracks.cloud
    colors = torch.full((len(cloud.points), 3), _GREY) if cloud.colors is None else to_uint8(cloud.colors)
    lines = [
        "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)",
        "# ERROR: mean distance of the views' surfaces, in pixels of the track's first image",
    ]
    pairs = zip((tracks.view + 1).tolist(), _index_in_view(tracks.view).tolist(), strict=True)
    words = [f"{image} {place}" for image, place in pairs]
    ends = torch.bincount(tracks.point, minlength=len(cloud.points)).cumsum(0).tolist()
    columns = zip(cloud.points.tolist(), colors.tolist(), tracks.errors.tolist(), ends, strict=True)
    start = 0
    for number, (point, (red, green, blue), error, end) in enumerate(columns, 1):
        track = " ".join(words[start:end])
        lines.append(f"{number} {_numbers(point)} {red} {green} {blue} {error:.6g} {track}")
        start = end
    return _to_bytes(lines)


def _index_in_view(view: Tensor) -> Tensor:
    """How many earlier observations (m,) are of the same view."""
    order = view.argsort(stable=True)
    count = torch.bincount(view)
    start = (count.cumsum(0) - count)[view[order]]
    place = torch.empty_like(view)
    place[order] = torch.arange(len(view), device=view.device) - start
    return place


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{float(value):.10g}" for value in values)


def _to_bytes(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8")
