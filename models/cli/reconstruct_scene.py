"""What `spatialweave reconstruct` runs: VGGT on image files, and the scene in files.

    OUT/view_0000.npz    each view: depth, confidence, image, intrinsics, pose
    OUT/view_0000.png    its depth in color, with a legend
    OUT/points.ply       one cloud of all views, in the first camera's frame
    OUT/colmap/          images, each at its own size, a COLMAP model and transforms.json
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..core.export.files import new_folder, write_file
from ..core.export.npz import write_npz
from ..core.export.ply import encode_point_cloud
from ..core.export.png8 import write_png8
from ..core.export.scene_folder import write_scene_folder
from ..core.geometry.fusion import FusedCloud, FusionSettings, fuse_views
from ..core.geometry.view import View
from ..core.pictures import open_picture
from ..core.visualize.depth_preview import explain_depth, picture_depth
from ..vggt.framing import Fit
from ..vggt.memory import estimate_memory
from ..vggt.pipeline import Result, Source, VggtPipeline, join_views, read_inputs

GB = 1e9


@dataclass(frozen=True)
class ReconstructRequest:
    """The settings of one run."""

    pictures: tuple[Path, ...]
    output: Path
    weights: Path | None = None
    fit: Fit = "pad"
    longer_side: int = 0
    source: Source = "depth"
    queries: int = 0
    tolerance: float = 0.03
    device: str = "cpu"


def run_reconstruct(request: ReconstructRequest) -> Iterator[str]:
    """Reconstruct, then write; yields one line per note and per file."""
    pictures = [open_picture(file) for file in request.pictures]  # first: before anything slow
    settings = FusionSettings(tolerance=request.tolerance)
    preset = "vggt_1b" if request.weights else "tiny"
    pipeline = VggtPipeline.from_preset(preset, weights=request.weights, device=request.device)
    yield from (f"note: {note}" for note in dict.fromkeys(n for one in pictures for n in one.notes))
    images = [one.rgb[0] for one in pictures]
    yield describe_need(pipeline, images, request)
    result = reconstruct_pictures(pipeline, images, request)
    yield from (f"note: {note}" for note in result.notes)
    fused = fuse(result.views, settings)
    yield fused.describe()
    yield from write_scene(request.output, result, fused)


def describe_need(pipeline: VggtPipeline, images: Sequence[torch.Tensor], request: ReconstructRequest) -> str:
    """Views, size and memory, before the run."""
    inputs = read_inputs(images, pipeline.config, request.fit, request.longer_side)
    width = next(pipeline.network.parameters()).dtype.itemsize
    need = estimate_memory(pipeline.config, len(images), inputs.size, width) / GB
    size = f"{inputs.size[1]} x {inputs.size[0]} pixels"
    return f"{len(images)} views at {size}: about {need:.2f} GB beside the weights"


def reconstruct_pictures(
    pipeline: VggtPipeline, images: Sequence[torch.Tensor], request: ReconstructRequest
) -> Result:
    parts = pipeline.network.count_parts(len(images), ("camera", request.source))
    with tqdm(total=parts, desc="VGGT", unit="part", disable=None) as bar:
        return pipeline(
            images,
            fit=request.fit,
            longer_side=request.longer_side,
            source=request.source,
            queries=request.queries,
            on_part=bar.update,
        )


def fuse(views: Sequence[View], settings: FusionSettings) -> FusedCloud:
    """One cloud. Smaller views are extended by pixels without depth."""
    sizes = [view.depth.shape[-2:] for view in views]
    largest = tuple(max(sides) for sides in zip(*sizes))
    joined = join_views([extend(view, largest) for view in views])
    return fuse_views(joined, settings)


def extend(view: View, size: tuple[int, int]) -> View:
    """A view with pixels without depth below and on the right, to (h, w)."""
    height, width = view.depth.shape[-2:]
    padding = (0, size[1] - width, 0, size[0] - height)
    return replace(
        view,
        depth=F.pad(view.depth, padding),
        mask=F.pad(view.mask, padding),
        confidence=F.pad(view.confidence, padding),
        image=F.pad(view.image, (0, 0, *padding)),
    )


def write_scene(output: Path, result: Result, fused: FusedCloud) -> Iterator[str]:
    """The files of a scene, all or none; yields a line each."""
    with new_folder(output) as part:
        files = []
        for index, view in enumerate(result.views):
            files.append(write_npz(part / f"view_{index:04}.npz", view))
            shown = explain_depth(view, picture_depth(view, "colour"), "colour")[0]
            files.append(write_png8(part / f"view_{index:04}.png", shown))
        cloud = fused.cloud
        comments = [f"units: {fused.views.units}", "world: the first camera's frame, y up"]
        # a y-up world has glTF's axes already
        data = encode_point_cloud(cloud, torch.eye(4), comments=comments)
        files.append(write_file(part / "points.ply", data))
        crops = [tuple(view.depth.shape[-2:]) for view in result.views]
        scene = write_scene_folder(part / "colmap", fused, crops=crops)
        files += [part / "colmap" / name for name in scene.files]
        names = [file.relative_to(part) for file in files]
    yield from (f"{output / name}" for name in names)
