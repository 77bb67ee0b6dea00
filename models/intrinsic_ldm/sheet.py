"""A contact sheet of sampled images and maps.

One row per prompt: the base model's own image, the image sampled with its maps, and the four maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.visualize.depth_colors import color_depth
from .maps.codec import MapImages

LABELS = ("Base alone", "With its maps", "Depth, relative", "Normals", "Segmentation", "Line art")
PAGE, TEXT, MUTED = (22, 23, 27), (236, 236, 238), (148, 153, 163)
MARGIN, GAP, PANEL = 48, 14, 256
HEAD, FOOT = 34, 44  # pixels above the images of a row and below them, for the labels


def intrinsic_sheet(prompts: Sequence[str], base: Tensor, maps: MapImages, *, caption: str = "") -> Tensor:
    """The sheet (H, W, 3) in [0, 1].

    `base` (b, h, w, 3) are the base model's own images; `maps` has the maps and the images sampled with them.
    `caption` (seed, schedule ...) is printed at the bottom.
    """
    if maps.view.image is None or len(base) != len(maps.view) or len(prompts) != len(base):
        counts = f"{len(prompts)} prompts, {len(base)} base images and {len(maps.view)} sets of maps"
        raise ValueError(
            f"Expected equally many of each, the maps with their images, got {counts}. Pass one each."
        )
    from PIL import Image, ImageDraw, ImageFont

    width = 2 * MARGIN + len(LABELS) * PANEL + (len(LABELS) - 1) * GAP
    row = PANEL + FOOT
    page = Image.new("RGB", (width, 2 * MARGIN + HEAD + len(prompts) * row + 20), PAGE)
    pen, small, large = ImageDraw.Draw(page), ImageFont.load_default(size=16), ImageFont.load_default(size=19)
    for column, label in enumerate(LABELS):
        pen.text((MARGIN + column * (PANEL + GAP), MARGIN), label, font=small, fill=MUTED)
    for index, prompt in enumerate(prompts):
        top = MARGIN + HEAD + index * row
        for column, image in enumerate(row_of(index, base, maps)):
            is_labels = LABELS[column] == "Segmentation"
            panel = Image.fromarray((image.clamp(0, 1) * 255).round().byte().numpy()).resize(
                (PANEL, PANEL), Image.Resampling.NEAREST if is_labels else Image.Resampling.BICUBIC
            )
            page.paste(panel, (MARGIN + column * (PANEL + GAP), top))
        pen.text((MARGIN, top + PANEL + 9), prompt, font=large, fill=TEXT)
    pen.text((MARGIN, page.height - MARGIN), caption, font=small, fill=MUTED)
    return torch.from_numpy(np.array(page)).float() / 255


def row_of(index: int, base: Tensor, maps: MapImages) -> list[Tensor]:
    """The images of one prompt, (h, w, 3) each, in the order of LABELS."""
    depth = color_depth(maps.view[index]).image
    return [
        base[index], maps.view.image[index], depth,
        maps.normals[index], maps.segmentation[index], maps.line[index],
    ]  # fmt: skip
