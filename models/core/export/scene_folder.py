"""A folder that Gaussian-splat and NeRF trainers start from: images, a COLMAP model, transforms.json."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..geometry.align import Each
from ..geometry.fusion import FusedCloud
from ..geometry.tracks import Tracks, find_tracks
from .colmap import check_pinhole, encode_cameras, encode_images, encode_points
from .files import new_folder, write_file
from .nerfstudio import encode_transforms, turn_z_up
from .ply import encode_ply
from .png8 import encode_png8

Layout = Literal["colmap", "nerfstudio", "both"]

MODEL = "sparse/0"  # COLMAP's, as trainers look for it
POINTS = "sparse_pc.ply"  # nerfstudio's


@dataclass(frozen=True)
class SceneFolder:
    """What was written."""

    folder: Path
    files: tuple[str, ...]  # relative to the folder
    points: int
    observations: int


def write_scene_folder(
    folder: str | os.PathLike,
    fused: FusedCloud,
    *,
    layout: Layout = "both",
    each: Each = iter,
) -> SceneFolder:
    """Write images, cameras and points of a fused cloud into a new folder, whole or not at all.

    ExportError if there is anything of that name. Each view has its own image and camera.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"Expected a layout of {get_args(Layout)}, got {layout!r}. Choose one of these.")
    view = fused.views
    if view.image is None:
        raise ValueError(
            "Expected views with images, got none: no trainer starts without. Give the images to the node "
            "that estimates the views."
        )
    check_pinhole(view)
    tracks = find_tracks(fused)
    names = [f"view_{index:04}.png" for index in fused.indices]
    texts = _models(fused, tracks, names, layout)
    with new_folder(folder) as part:
        for name, image in each(list(zip(names, view.image, strict=True))):
            write_file(part / "images" / name, encode_png8(image))
        for name, data in texts.items():
            write_file(part / name, data)
    files = (*(f"images/{name}" for name in names), *texts)
    return SceneFolder(Path(folder), files, len(tracks.cloud.points), len(tracks.point))


def _models(fused: FusedCloud, tracks: Tracks, names: list[str], layout: Layout) -> dict[str, bytes]:
    """Files beside the images, by their path in the folder."""
    view, cloud, files = fused.views, tracks.cloud, {}
    if layout in ("colmap", "both"):
        files[f"{MODEL}/cameras.txt"] = encode_cameras(view)
        files[f"{MODEL}/images.txt"] = encode_images(view, tracks, names)
        files[f"{MODEL}/points3D.txt"] = encode_points(tracks)
    if layout in ("nerfstudio", "both"):
        paths = [f"images/{name}" for name in names]
        files["transforms.json"] = encode_transforms(view, paths, points=POINTS)
        normals = None if cloud.normals is None else turn_z_up(cloud.normals)
        notes = [f"units: {view.units}"]
        points = turn_z_up(cloud.points)
        files[POINTS] = encode_ply(points, cloud.colors, normals, axes="z_up", comments=notes)
    return files
