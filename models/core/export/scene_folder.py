"""A folder that Gaussian-splat and NeRF trainers start from: images, a COLMAP model, transforms.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from ..geometry.align import Each
from ..geometry.fusion import FusedCloud
from ..geometry.tracks import Tracks, find_tracks
from .colmap import PinholeCameras, encode_cameras, encode_images, encode_points
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
    images: Tensor | None = None,
    crops: Sequence[tuple[int, int]] | None = None,
    each: Each = iter,
) -> SceneFolder:
    """Write images, cameras and points of a fused cloud into a new folder, whole or not at all.

    ExportError if there is anything of that name. Each view has its own image and camera. `images` (b, h, w,
    3), one for each view of the batch that was fused, of any size and the same proportions, are written in
    place of the views' own; the cameras then count in their pixels. `crops` are the (height, width) of each
    fused view's image where the batch's size pads it at the right and below; it is written without that.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"Expected a layout of {get_args(Layout)}, got {layout!r}. Choose one of these.")
    view = fused.views
    images = _choose_images(fused, images)
    size = tuple(images.shape[1:3])
    cameras = PinholeCameras.of_view(view, size, crops)
    tracks = find_tracks(fused)
    scale = tracks.pixels.new_tensor([size[1] / view.depth.shape[2], size[0] / view.depth.shape[1]])
    tracks = replace(tracks, pixels=tracks.pixels * scale, errors=tracks.errors * scale.mean())
    names = [f"view_{index:04}.png" for index in fused.indices]
    texts = _models(cameras, tracks, names, layout)
    with new_folder(folder) as part:
        for name, image, (height, width) in each(list(zip(names, images, cameras.sizes, strict=True))):
            write_file(part / "images" / name, encode_png8(image[:height, :width]))
        for name, data in texts.items():
            write_file(part / name, data)
    files = (*(f"images/{name}" for name in names), *texts)
    return SceneFolder(Path(folder), files, len(tracks.cloud.points), len(tracks.point))


def _choose_images(fused: FusedCloud, images: Tensor | None) -> Tensor:
    """The images (v, h, w, 3) of the fused views: their own, or those of a batch that has one for each."""
    if images is None:
        if fused.views.image is None:
            raise ValueError(
                "Expected views with images, got none: no trainer starts without. Connect the images, here "
                "or to the node that estimates the views."
            )
        return fused.views.image
    if len(images) != fused.total:
        raise ValueError(
            f"Expected an image for each of {fused.total} views, got {len(images)}. Connect the images that "
            "the views were estimated from."
        )
    height, width = fused.views.depth.shape[1:]
    scale = images.shape[2] / width, images.shape[1] / height
    # a side may be rounded by a pixel
    if abs(scale[0] - scale[1]) > max(scale) / min(height, width):
        raise ValueError(
            f"Expected images of the views' proportions, {width} x {height}, got {images.shape[2]} x "
            f"{images.shape[1]}. Scale them without cropping."
        )
    return images[list(fused.indices)]


def _models(cameras: PinholeCameras, tracks: Tracks, names: list[str], layout: Layout) -> dict[str, bytes]:
    """Files beside the images, by their path in the folder."""
    cloud, files = tracks.cloud, {}
    if layout in ("colmap", "both"):
        files[f"{MODEL}/cameras.txt"] = encode_cameras(cameras)
        files[f"{MODEL}/images.txt"] = encode_images(cameras, tracks, names)
        files[f"{MODEL}/points3D.txt"] = encode_points(tracks)
    if layout in ("nerfstudio", "both"):
        paths = [f"images/{name}" for name in names]
        files["transforms.json"] = encode_transforms(cameras, paths, points=POINTS)
        normals = None if cloud.normals is None else turn_z_up(cloud.normals)
        notes = [f"units: {cameras.units}"]
        points = turn_z_up(cloud.points)
        files[POINTS] = encode_ply(points, cloud.colors, normals, axes="z_up", comments=notes)
    return files
