"""PLY: a colored point cloud, binary little endian, float positions and normals, 8-bit colors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..geometry.camera import FLIP_Y_Z, transform_points
from ..geometry.points import PointCloud
from .files import write_file

Axes = Literal["gltf", "opencv", "z_up"]

CHUNK = 1 << 16  # points
_AXES_COMMENT = {
    "gltf": "axes: x right, y up, looks down -z (glTF)",
    "opencv": "axes: x right, y down, z forward (OpenCV)",
    "z_up": "axes: x right, y forward, z up",
}


def encode_ply(
    points: Tensor,
    colors: Tensor | None = None,
    normals: Tensor | None = None,
    *,
    axes: Axes = "gltf",
    comments: Sequence[str] = (),
) -> bytes:
    """Points (n, 3) in OpenCV axes, colors (n, 3) in [0, 1], normals (n, 3), as the bytes of a PLY.

    "gltf" turns points and normals y up, -z forward, as Blender's importer, ComfyUI's viewer and camera_info
    expect; "opencv" does not, nor does "z_up" with points of such a world. A comment states the axes,
    followed by ``comments``.
    """
    if axes not in get_args(Axes):
        raise ValueError(f"Expected axes of {get_args(Axes)}, got {axes!r}. Choose one of these.")
    if any(not line.isascii() or "\n" in line for line in comments):
        raise ValueError(
            "Expected each PLY comment as one line of ASCII text, got another. Remove line breaks and "
            "other characters."
        )
    _check(points, colors, normals)
    flip = FLIP_Y_Z if axes == "gltf" else (1, 1, 1)
    columns = [(name, "<f4") for name in "xyz"]
    columns += [(name, "<f4") for name in ("nx", "ny", "nz") if normals is not None]
    columns += [(name, "u1") for name in ("red", "green", "blue") if colors is not None]
    words = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"comment {_AXES_COMMENT[axes]}"]
    header += [f"comment {line}" for line in comments]
    header += [f"element vertex {len(points)}"] + [
        f"property {words[kind]} {name}" for name, kind in columns
    ]
    parts = [("\n".join([*header, "end_header"]) + "\n").encode("ascii")]
    for start in range(0, len(points), CHUNK):
        rows = (None if each is None else each[start : start + CHUNK] for each in (points, colors, normals))
        parts.append(_records(*rows, flip, np.dtype(columns)))
    return b"".join(parts)


def write_ply(
    path: str | os.PathLike,
    points: Tensor,
    colors: Tensor | None = None,
    normals: Tensor | None = None,
    *,
    axes: Axes = "gltf",
    comments: Sequence[str] = (),
) -> Path:
    """Write a point cloud; see :func:`encode_ply`."""
    return write_file(path, encode_ply(points, colors, normals, axes=axes, comments=comments))


def encode_point_cloud(cloud: PointCloud, camera_to_viewer: Tensor, *, comments: Sequence[str] = ()) -> bytes:
    """A cloud as the bytes of a PLY in glTF axes, transformed by the pose (4, 4)
    (geometry.points.viewer_pose).
    """
    if len(cloud.points) == 0:
        raise ValueError(
            "Expected at least one point, got none: every pixel is invalid or lies on a depth edge. Raise "
            "the edge threshold, or set it to 0."
        )
    # the writer turns OpenCV axes itself; a change of signs is exact
    back = cloud.points.new_tensor(FLIP_Y_Z)
    normals = None if cloud.normals is None else cloud.normals @ camera_to_viewer[:3, :3].T * back
    return encode_ply(
        transform_points(cloud.points, camera_to_viewer) * back, cloud.colors, normals, comments=comments
    )


def _check(points: Tensor, colors: Tensor | None, normals: Tensor | None) -> None:
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(
            f"Expected points (n, 3), at least one, got {tuple(points.shape)}. Check that not every pixel is "
            "masked."
        )
    for name, values in (("colors", colors), ("normals", normals)):
        if values is not None and values.shape != points.shape:
            raise ValueError(
                f"Expected {name} {tuple(points.shape)}, one row a point, got {tuple(values.shape)}. Pass "
                "those of the points."
            )
    broken = sum(int((~torch.isfinite(part).all(dim=1)).sum()) for part in points.split(CHUNK))
    if broken:
        raise ValueError(
            f"Expected finite points, got {broken} of {len(points)} NaN or infinite. Mask them first."
        )


def _records(
    points: Tensor, colors: Tensor | None, normals: Tensor | None, flip: Sequence[float], kind: np.dtype
) -> bytes:
    """The vertices of one chunk."""
    records = np.empty(len(points), dtype=kind)
    for names, values in (("xyz", points), (("nx", "ny", "nz"), normals)):
        if values is not None:
            numbers = values.detach().cpu()
            numbers = (numbers if numbers.dtype == torch.float64 else numbers.float()).numpy()
            for axis, name in enumerate(names):
                np.multiply(numbers[:, axis], flip[axis], out=records[name], casting="same_kind")
    if colors is not None:
        levels = (colors.detach().cpu().double().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        for axis, name in enumerate(("red", "green", "blue")):
            records[name] = levels[:, axis]
    return records.tobytes()
