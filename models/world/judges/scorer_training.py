"""Training of the scorer: targets from the world's ground truth, augmentation, one loss.

Letters: b images, k objects (row 0 is "no object"), `h w` the network's cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..scene import COLORS, SHAPES, SIZES, Scene, apparent_circle
from .scorer_network import FLOORS, MEAN_LOG_DEPTH, OFFSET_CELLS, STRIDE

TABLE_ROWS = 7  # "no object" and up to six objects
TABLE = ("shape", "color", "size", "x", "y", "log_depth")
LOSS_WEIGHTS = {"shape": 1.5, "color": 1.0, "size": 0.5, "offset": 2.0, "log_depth": 4.0, "floor": 0.1}


def object_table(scene: Scene) -> Tensor:
    """Targets of each object, float32 (TABLE_ROWS, len(TABLE)): classes, center in a square image, log
    depth."""
    table = torch.zeros(TABLE_ROWS, len(TABLE))
    colors = list(COLORS)
    for row, item in enumerate(scene.objects, 1):
        x, y, depth, _ = apparent_circle(item, scene.camera)
        classes = (1 + SHAPES.index(item.shape), 1 + colors.index(item.color), SIZES.index(item.size))
        table[row] = torch.tensor([*classes, x, y, math.log(depth)])
    return table


def make_sample(image: Tensor, segmentation: Tensor, scene: Scene) -> dict[str, Tensor]:
    """One training sample from an image uint8 (h, w, 3), its segmentation (h, w) and its scene."""
    return {
        "image": rearrange(image, "h w c -> c h w"),
        "cells": segmentation[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].clamp_min(0).to(torch.int64),
        "objects": object_table(scene),
        "floor": torch.tensor(FLOORS.index(scene.surroundings.floor)),
    }


def loss(
    model: nn.Module, batch: Mapping[str, Any], generator: Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the classes and L1 of the numbers, over augmented images: (scalar, named terms)."""
    image, cells, objects = mirror(batch["image"].float() / 255, batch["cells"], batch["objects"], generator)
    guess = model(degrade(image, generator))
    target = scatter_targets(objects, cells)
    inside = (cells > 0).float()
    # small objects have the weight of large ones; the background is most of the image and easy
    area = _areas(cells)
    weight = inside * (1 + 24 / area) + 0.5 * (1 - inside)
    weight, object_weight = weight / weight.sum(), weight * inside / (weight * inside).sum().clamp_min(1)
    parts = {name: (_cross_entropy(guess[name], target[name]) * weight).sum() for name in ("shape", "color")}
    parts["size"] = (_cross_entropy(guess["size"], target["size"]) * object_weight).sum()
    offset, log_depth = (
        (guess["offset"] - target["offset"]).abs().sum(1),
        (guess["log_depth"] - target["log_depth"]).abs().squeeze(1),
    )
    parts |= {"offset": (offset * object_weight).sum(), "log_depth": (log_depth * object_weight).sum()}
    parts["floor"] = F.cross_entropy(guess["floor"].float(), batch["floor"])
    return sum(LOSS_WEIGHTS[name] * part for name, part in parts.items()), {
        name: part.detach() for name, part in parts.items()
    }


def scatter_targets(objects: Tensor, cells: Tensor) -> dict[str, Tensor]:
    """Targets of each cell from the table (b, k, 6) of the objects.

    classes (b, h, w) int64; offset (b, 2, h, w); log_depth (b, 1, h, w).
    """
    b, h, w = cells.shape
    index = rearrange(cells, "b h w -> b (h w) 1").expand(-1, -1, objects.shape[2])
    rows = rearrange(objects.gather(1, index), "b (h w) field -> field b h w", h=h, w=w)
    fields = dict(zip(TABLE, rows, strict=True))
    short = min(h, w) / 2
    column, row = (
        torch.arange(w, device=cells.device) + 0.5,
        torch.arange(h, device=cells.device)[:, None] + 0.5,
    )
    x, y = w / 2 + fields["x"] * short - column, h / 2 + fields["y"] * short - row
    classes = {name: fields[name].long() for name in ("shape", "color", "size")}
    return {
        **classes,
        "offset": torch.stack((x, y), 1) / OFFSET_CELLS,
        "log_depth": fields["log_depth"][:, None] - MEAN_LOG_DEPTH,
    }


def _areas(cells: Tensor) -> Tensor:
    """Number of cells of each cell's object, (b, h, w)."""
    flat = cells.flatten(1)
    counts = torch.zeros(len(cells), TABLE_ROWS, device=cells.device).scatter_add_(
        1, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    return counts.gather(1, flat).reshape(cells.shape)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target, reduction="none")


def mirror(
    image: Tensor, cells: Tensor, objects: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip half of the images horizontally, with their targets."""
    flip = (torch.rand(len(image), generator=generator) < 0.5).to(image.device)
    image = torch.where(flip[:, None, None, None], image.flip(3), image)
    cells = torch.where(flip[:, None, None], cells.flip(2), cells)
    sign = torch.ones_like(objects)
    sign[flip, :, TABLE.index("x")] = -1
    return image, cells, objects * sign


def degrade(image: Tensor, generator: Generator) -> Tensor:
    """Augment images (b, 3, h, w) in [0, 1] with tint, blur, block quantization and noise, as codecs and
    generators have.

    A fifth stay as they are.
    """
    b, device = len(image), image.device

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(b, *shape, generator=generator)).to(device)

    touched = draw(0, 1, 1, 1, 1) > 0.2
    out = turn_hue(image, math.radians(7.0) * draw(-1, 1))
    out = (
        (out - 0.5) * draw(0.8, 1.15, 1, 1, 1) + 0.5 + draw(-0.1, 0.1, 1, 1, 1) + draw(-0.025, 0.025, 3, 1, 1)
    )
    out = blur(out, draw(0.0, 1.0).pow(2) * 1.5)
    out = quantize_blocks(out, draw(0.0, 0.12).sub(0.03).clamp_min(1e-3))
    noise = torch.randn(image.shape, generator=generator).to(device)
    coarse = torch.randn((b, 3, image.shape[2] // 4, image.shape[3] // 4), generator=generator).to(device)
    out = (
        out
        + noise * draw(0.0, 0.03, 1, 1, 1)
        + F.interpolate(coarse, size=image.shape[2:], mode="bilinear") * draw(0.0, 0.03, 1, 1, 1)
    )
    return torch.where(touched, out.clamp(0, 1), image)


def turn_hue(image: Tensor, angle: Tensor) -> Tensor:
    """Rotate the colors of images (b, 3, h, w) about the gray axis by `angle` (b,) radians."""
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None] / math.sqrt(3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=image.device)
    turn = cos * torch.eye(3, device=image.device) + (1 - cos) / 3 + sin * cross
    return torch.einsum("bij,bjhw->bihw", turn, image)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of images (b, c, h, w), `sigma` (b,) in pixels."""
    b, c = image.shape[:2]
    taps = torch.arange(-4, 5, device=image.device)
    kernel = torch.softmax(-0.5 * (taps / sigma.clamp_min(0.05)[:, None]) ** 2, 1)
    vertical = repeat(kernel, "b k -> (b c) 1 k 1", c=c)
    horizontal = rearrange(vertical, "n 1 k 1 -> n 1 1 k")
    flat = F.pad(rearrange(image, "b c h w -> 1 (b c) h w"), (4, 4, 4, 4), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, vertical, groups=b * c), horizontal, groups=b * c)
    return rearrange(flat, "1 (b c) h w -> b c h w", b=b)


def quantize_blocks(image: Tensor, step: Tensor) -> Tensor:
    """Quantize images (b, 3, h, w) as JPEG does.

    DCT coefficients of 8 x 8 blocks are rounded to multiples of `step` (b,), which grow with frequency.
    """
    index = torch.arange(8, device=image.device, dtype=torch.float32)
    basis = (
        torch.cos(math.pi / 8 * index[:, None] * (index + 0.5))
        * torch.where(index > 0, 0.5, math.sqrt(0.125))[:, None]
    )
    blocks = rearrange(image, "b c (y p) (x q) -> b c y x p q", p=8, q=8)
    coefficients = basis @ blocks @ basis.T
    steps = step[:, None, None, None, None, None] * (1 + (index[:, None] + index) / 2)
    rounded = (coefficients / steps).round() * steps
    return rearrange(basis.T @ rounded @ basis, "b c y x p q -> b c (y p) (x q)")
