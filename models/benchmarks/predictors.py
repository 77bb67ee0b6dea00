"""What a benchmark asks for depth and poses: Modality Forcing, VGGT, or any graph in a running ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.evaluation.benchmark import average_predictions
from ..core.geometry.resize import resize_antialiased
from ..core.geometry.view import View


class DepthPredictor(Protocol):
    """Depth of single images."""

    name: str
    settings: Mapping[str, Any]  # what decides the figures, beside the name

    def __call__(self, image: Tensor, index: int) -> View:
        """The View of an image (h, w, 3) in [0, 1], of any size; `index` is its place in the dataset."""


class PosePredictor(Protocol):
    """Poses of several images of one scene, in one frame."""

    name: str
    settings: Mapping[str, Any]

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """world_to_cam (v, 4, 4) of images (h, w, 3) in [0, 1]."""


class ModalityForcingDepth:
    """Depth by image_to_depth of a Modality Forcing network in plain torch."""

    def __init__(
        self,
        preset: str = "tiny",
        weights: Path | None = None,
        *,
        size: int = 0,
        steps: int = 0,
        seed: int = 0,
        ensemble: int = 1,
        device: str = "cpu",
    ) -> None:
        from ..modality_forcing.pipeline import ModalityForcingPipeline

        self.pipeline = ModalityForcingPipeline.from_preset(preset, weights=weights, device=device)
        self.name = f"Modality Forcing ({weights.name if weights else preset})"
        self.size = size or self.pipeline.defaults.size
        self.steps = steps or self.pipeline.defaults.image_to_depth.steps
        self.seed, self.ensemble = seed, ensemble
        self.settings = {"size": self.size, "steps": self.steps, "seed": seed, "ensemble": ensemble}

    def __call__(self, image: Tensor, index: int) -> View:
        small = fit_longer_side(image, self.size)[None]
        seeds = (self.seed + index * self.ensemble + draw for draw in range(self.ensemble))
        options = {"mode": "image_to_depth", "image": small, "steps": self.steps}
        return average_predictions([self.pipeline("", seed=seed, **options).view for seed in seeds])


class _Vggt:
    """VGGT in plain torch."""

    def __init__(self, weights: Path | None = None, *, size: int = 0, device: str = "cpu") -> None:
        from ..vggt.pipeline import VggtPipeline

        self.pipeline = VggtPipeline.from_file(weights, device=device)
        self.name = f"VGGT ({weights.name if weights else 'tiny'})"
        self.size = size
        self.settings = {"size": size}


class VggtDepth(_Vggt):
    """Depth of one image, as of a scene of one view."""

    def __call__(self, image: Tensor, index: int) -> View:
        return self.pipeline(image[None], longer_side=self.size).view


class VggtPoses(_Vggt):
    """Poses of all images of a scene, in one forward pass."""

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        views = self.pipeline([image[None] for image in images], longer_side=self.size).views
        return torch.cat([view.world_to_cam for view in views])


def fit_longer_side(image: Tensor, longest: int) -> Tensor:
    """The image (h, w, 3) with this many pixels on its longer side, at least 8 on the shorter; never
    enlarged.
    """
    height, width = image.shape[:2]
    if max(height, width) <= longest:
        return image
    scale = longest / max(height, width)
    size = tuple(max(8, round(side * scale)) for side in (height, width))
    smaller = resize_antialiased(image.movedim(-1, 0)[None], size)
    return smaller[0].movedim(0, -1).clamp(0, 1)
