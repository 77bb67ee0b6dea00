"""Images of one scene in; a View with depth, confidence and camera for each, and geometry tokens out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..core.geometry.camera import pad_pose, upright_world
from ..core.geometry.view import View
from ..core.layers.attention import Attend, attend
from ..core.pictures import read_pictures
from .config import MAX_VIEWS, PRESETS, VggtConfig, find_preset
from .framing import LARGEST_SIDE, Fit, Frame, frame_images, intrinsics_back, read_back
from .network import OnPart, Prediction, Vggt
from .notes import describe_inputs, describe_views, name_views
from .pose_code import decode_poses, relative_to_first
from .weights import load_network

FIELDS_OF_VIEW = (1.0, 170.0)  # degrees; predicted fields of view are clamped to these
TINY_NETWORK = Path(__file__).with_name("tiny.safetensors")
Source = Literal["depth", "point"]
Run = Callable[[Tensor], Prediction]  # (1, v, 3, H, W) in [0, 1] -> outputs of the heads, on any device


@dataclass(frozen=True)
class Result:
    """One View for each image, at its size, in the first camera's world; relative scale."""

    views: tuple[View, ...]  # each a batch of 1
    notes: tuple[str, ...]  # a sentence on each change of the inputs and each unreliable output
    size: tuple[int, int]  # (H, W) that the network saw
    seconds: float

    @property
    def view(self) -> View:
        """All views as one batch. ValueError if their sizes differ."""
        return join_views(self.views)


@dataclass(frozen=True)
class GeometryTokens:
    """Tokens of the aggregator's last entry, for networks that attend to the geometry of these images."""

    tokens: Tensor  # (v, n, 2c): camera token, registers, then patches row-major
    special: int  # camera and register tokens, before the patches
    grid: tuple[int, int]  # rows and columns of patches
    patch: int  # pixels a side, in the network's image
    frames: tuple[Frame, ...]  # where each image lies in the network's image


@dataclass(frozen=True)
class Inputs:
    """Images as the network sees them."""

    images: tuple[Tensor, ...]  # each (h, w, 3) in [0, 1]
    framed: Tensor  # (1, v, 3, H, W)
    frames: tuple[Frame, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.framed.shape[-2:])


class VggtPipeline:
    """A network with its pre- and postprocessing: images of any size in, views at their sizes out."""

    def __init__(self, network: Vggt, config: VggtConfig):
        self.network, self.config = network.train(False), config

    @classmethod
    def from_preset(
        cls,
        name: str = "tiny",
        *,
        weights: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ):
        """The preset with its shipped weights, or with `weights`, a VGGT file of its shape.

        ValueError for an unknown preset, and for a file of another shape.
        `dtype` is the body's, by default the file's (float32 for the tiny one); heads compute in float32.
        """
        find_preset(name)
        if weights is None and name != "tiny":
            raise ValueError(
                f"Expected weights for {name}, got none: the pack ships those of tiny alone. Give VGGT's "
                "file."
            )
        pipeline = cls.from_file(weights, device=device, dtype=dtype)
        if weights:
            check_preset(name, pipeline.config, weights)
        return pipeline

    @classmethod
    def from_file(
        cls,
        weights: str | os.PathLike | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ):
        """A VGGT file of any shape, by default the shipped tiny one; `dtype` as for a preset."""
        file, given = (weights, None) if weights else (TINY_NETWORK, PRESETS["tiny"])
        dtype = dtype or (None if weights else torch.float32)
        return cls(*load_network(file, config=given, dtype=dtype, device=device))

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        *,
        fit: Fit = "pad",
        longer_side: int = 0,
        source: Source = "depth",
        queries: int = 0,
        on_part: OnPart | None = None,
    ) -> Result:
        """Reconstruct a scene. `images` is a batch (v, h, w, c), or a sequence of images of any sizes.

        `fit`: see `frame_images`; `longer_side` in pixels, 0 for the size that the network was trained at.
        `source`: the head that the depth is from; points become depth by the camera of their view.
        `queries`: global attention on that many rows at a time; 0 is all at once.
        """
        device = next(self.network.parameters()).device

        def run(framed: Tensor) -> Prediction:
            return self.network(framed.to(device), heads=("camera", source), queries=queries, on_part=on_part)

        check_heads(self.config, source)
        return reconstruct(run, read_inputs(images, self.config, fit, longer_side), self.config)

    @torch.no_grad()
    def encode(
        self, images: Any, *, fit: Fit = "pad", longer_side: int = 0, attend: Attend = attend
    ) -> GeometryTokens:
        """The geometry tokens of images; parameters as for a reconstruction."""
        inputs = read_inputs(images, self.config, fit, longer_side)
        framed = inputs.framed.to(next(self.network.parameters()).device)
        last = self.config.depth - 1
        encoded = self.network.aggregator(framed, [last], attend=attend)
        return to_tokens(encoded.layers[last], inputs, self.config)


def read_inputs(images: Any, config: VggtConfig, fit: Fit, longer_side: int = 0) -> Inputs:
    """Images of any kind that `read_pictures` takes, framed; alpha is left out. ValueError for no images, and
    for more than the network takes.
    """
    if isinstance(images, Sequence):
        read = [read_pictures(image) for image in images]
    else:
        read = [read_pictures(images)]
    rgb = tuple(image for pictures in read for image in pictures.rgb)
    if not 1 <= len(rgb) <= MAX_VIEWS:
        raise ValueError(
            f"Expected 1 to {MAX_VIEWS} views of one scene, got {len(rgb)}. Of a video, take every n-th "
            "frame."
        )
    longer_side = longer_side or config.img_size
    if not config.patch_size <= longer_side <= LARGEST_SIDE:
        raise ValueError(
            f"Expected a longer side of {config.patch_size} to {LARGEST_SIDE} pixels, got {longer_side}. "
            f"This network was trained at {config.img_size}; 0 takes that."
        )
    framed, frames = frame_images(rgb, fit, longer_side, config.patch_size)
    notes = tuple(dict.fromkeys(note for pictures in read for note in pictures.notes))
    return Inputs(rgb, framed[None], frames, notes + describe_inputs(rgb, frames, tuple(framed.shape[-2:])))


def reconstruct(run: Run, inputs: Inputs, config: VggtConfig) -> Result:
    """One View for each image, from a network that `run` calls."""
    started = time.perf_counter()
    prediction = run(inputs.framed)
    check_finite_outputs(prediction)
    views, camera_notes = to_views(prediction, inputs, config)
    notes = inputs.notes + camera_notes + describe_views(views)
    return Result(views, notes, inputs.size, time.perf_counter() - started)


def check_preset(name: str, config: VggtConfig, file: str | os.PathLike) -> None:
    """ValueError if a file's network is not of the preset's shape; it may lack heads, or have others."""
    preset = PRESETS[name]
    shape = ("patch_size", "embed_dim", "depth", "num_heads")
    odd = [key for key in shape if getattr(config, key) != getattr(preset, key)]
    if odd:
        facts = [getattr(config, key) for key in shape]
        fits = [other for other in PRESETS if facts == [getattr(PRESETS[other], key) for key in shape]]
        advice = f"Choose the preset {fits[0]}" if fits else "Choose a file of this preset, or use from_file"
        raise ValueError(
            f"Expected {odd[0]} {getattr(preset, odd[0])} of the preset {name} in {Path(file).name}, got "
            f"{getattr(config, odd[0])}. {advice}."
        )


def check_heads(config: VggtConfig, source: Source) -> None:
    """ValueError if a network lacks the camera head, or the head that the depth is from."""
    if source not in get_args(Source):
        raise ValueError(
            f"Expected source {' or '.join(get_args(Source))}, got {source!r}. Choose one of these."
        )
    lacking = [head for head in ("camera", source) if head not in config.heads]
    if lacking:
        raise ValueError(
            f"Expected a VGGT network with a {lacking[0]} head, got one with "
            f"{', '.join(config.heads) or 'none'}. Choose another source of the depth, or the whole file."
        )


def check_finite_outputs(prediction: Prediction) -> None:
    """ValueError if an output is NaN or infinite: float16 overflows in this network."""
    found = {"depth": prediction.depth, "points": prediction.points, "cameras": prediction.poses[-1]}
    for what, value in found.items():
        if value is not None and not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            raise ValueError(
                f"Expected finite {what} from the network, got {bad} NaN or infinite numbers of "
                f"{value.numel()}. Run it in bfloat16 or float32 (float16 overflows), or fetch the file "
                "again."
            )


def to_views(
    prediction: Prediction, inputs: Inputs, config: VggtConfig
) -> tuple[tuple[View, ...], tuple[str, ...]]:
    """Depth maps and cameras at each image's own size, on the CPU, and a note on clamped fields of view."""
    encoding, notes = clamp_fields_of_view(prediction.poses[-1][0].float().cpu())
    poses, intrinsics = decode_poses(encoding, inputs.size)
    maps = dense_maps(prediction, poses)
    # relative_to_first makes the first pose the identity, which the network predicts only approximately
    poses = upright_world(pad_pose(relative_to_first(poses)))
    views = []
    for i, (image, frame) in enumerate(zip(inputs.images, inputs.frames)):
        (depth, confidence), seen = (part.cpu() for part in read_back(maps[i], frame))
        views.append(
            View.from_depth(
                depth,
                units="relative",
                mask=seen,
                image=image.cpu(),
                confidence=torch.where(seen, confidence, torch.zeros_like(confidence)),
                intrinsics=intrinsics_back(intrinsics[i], frame, config.pixel_center),
                world_to_cam=poses[i],
            )
        )
    return tuple(views), notes


def clamp_fields_of_view(encoding: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Pose encodings (v, 9) with fields of view clamped to FIELDS_OF_VIEW (the network may predict 0), and a
    note on the clamped ones.
    """
    angles = encoding[:, 7:]
    clamped = angles.clamp(*(math.radians(degrees) for degrees in FIELDS_OF_VIEW))
    odd = (clamped != angles).any(-1).nonzero().flatten().tolist()
    if not odd:
        return encoding, ()
    low, high = FIELDS_OF_VIEW
    note = (
        f"{name_views(odd)}: field of view clamped to {low:g} to {high:g} degrees, so the camera is "
        "unreliable."
    )
    return torch.cat((encoding[:, :7], clamped), dim=-1), (note,)


def dense_maps(prediction: Prediction, poses: Tensor) -> Tensor:
    """Depth and confidence (v, 2, H, W): the depth head's, else the z of the point head's points in their
    view's camera.
    """
    if prediction.depth is not None:
        return torch.stack((prediction.depth[0], prediction.depth_confidence[0]), dim=1).float()
    pose = poses.to(prediction.points.device)
    in_cam = torch.einsum("v j, v h w j -> v h w", pose[:, 2, :3], prediction.points[0].float())
    depth = in_cam + pose[:, 2, 3][:, None, None]
    return torch.stack((depth, prediction.points_confidence[0].float()), dim=1)


def to_tokens(layer: Tensor, inputs: Inputs, config: VggtConfig) -> GeometryTokens:
    """One entry (1, v, n, 2c) of the aggregator with the grid it lies on."""
    grid = tuple(side // config.patch_size for side in inputs.size)
    tokens = layer[0].float().cpu()
    return GeometryTokens(tokens, config.special_tokens, grid, config.patch_size, inputs.frames)


def join_views(views: Sequence[View]) -> View:
    """Views of one size as one batch; ValueError names the sizes if they differ."""
    sizes = sorted({tuple(view.depth.shape[-2:]) for view in views})
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for height, width in (sizes[0], sizes[-1]))
        raise ValueError(
            f"Expected images of one size for one batch of views, got {shown}. Take the views one by one."
        )
    tensors = [field.name for field in fields(View) if isinstance(getattr(views[0], field.name), Tensor)]
    return replace(views[0], **{name: torch.cat([getattr(view, name) for view in views]) for name in tensors})
