"""Training of the predictor: targets from the world's ground truth, the scorer's augmentation, one loss.

Letters: b images, `h w` pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from ..scene import COLORS
from .predictor_network import FIRST_COLOR, SKY, SURROUNDINGS
from .scorer_network import MEAN_LOG_DEPTH
from .scorer_training import degrade

LOSS_WEIGHTS = {"log_depth": 4.0, "normals": 2.0, "kind": 1.0, "line": 1.0}
LINE_WEIGHT = 2.0  # of pixels on lines, which are a twentieth of the others
UNIT = 127  # length of an int8 normal


def make_sample(raw: Mapping[str, Tensor], objects: Sequence[str]) -> dict[str, Tensor]:
    """One training sample from a dataset row of the world.

    Row: image uint8 (h, w, 3); depth (h, w), 0, infinite or NaN in the sky; segmentation (h, w); line (h, w);
    normals int8 (h, w, 3). `objects` are the names of the segmentation's objects, such as "red ball".
    """
    depth, colors = (
        raw["depth"].float(),
        [FIRST_COLOR + list(COLORS).index(name.split()[0]) for name in objects],
    )
    known = torch.isfinite(depth) & (depth > 0)
    return {
        "image": rearrange(raw["image"], "h w c -> c h w"),
        "log_depth": (depth.masked_fill(~known, math.exp(MEAN_LOG_DEPTH)).log() - MEAN_LOG_DEPTH)[None],
        "normals": rearrange(raw["normals"], "h w xyz -> xyz h w"),
        "kind": torch.tensor([SKY, SURROUNDINGS, *colors])[raw["segmentation"].long() + 1],
        "line": raw["line"][None],
    }


def loss(
    model: nn.Module, batch: Mapping[str, Any], generator: Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of all four maps over augmented images: (scalar, named terms).

    Sky has neither depth nor normal.
    """
    batch = mirror(batch, generator)
    guess = {
        name: value.float() for name, value in model(degrade(batch["image"].float() / 255, generator)).items()
    }
    solid = (batch["kind"] != SKY).float()
    solid = solid / solid.sum().clamp_min(1)
    angle = 1 - F.cosine_similarity(guess["normals"], batch["normals"].float() / UNIT, dim=1)
    weight = torch.tensor(LINE_WEIGHT, device=solid.device)
    parts = {
        "log_depth": ((guess["log_depth"] - batch["log_depth"]).abs()[:, 0] * solid).sum(),
        "normals": (angle * solid).sum(),
        "kind": F.cross_entropy(guess["kind"], batch["kind"]),
        "line": F.binary_cross_entropy_with_logits(guess["line"], batch["line"].float(), pos_weight=weight),
    }
    return sum(LOSS_WEIGHTS[name] * part for name, part in parts.items()), {
        name: part.detach() for name, part in parts.items()
    }


def mirror(batch: Mapping[str, Any], generator: Generator) -> dict[str, Tensor]:
    """Flip half of the images horizontally, with their targets."""
    flip = torch.rand(len(batch["image"]), generator=generator) < 0.5
    mirrored = {}
    for name in ("image", "log_depth", "normals", "kind", "line"):
        turned = batch[name].flip(-1)
        if name == "normals":
            turned = turned * turned.new_tensor([-1, 1, 1])[:, None, None]
        mirrored[name] = torch.where(
            flip.to(turned.device).view(-1, *[1] * (turned.ndim - 1)), turned, batch[name]
        )
    return mirrored
