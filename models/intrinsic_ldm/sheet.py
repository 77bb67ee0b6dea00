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


def intrinsic_sheet(prompts: Sequence[str], base: Tensor, found: MapImages, *, facts: str = "") -> Tensor:
    """The sheet (H, W, 3) in [0, 1].

    `base` (b, h, w, 3) are the base model's own images; `found` has the maps and the images sampled with
    them. `facts` (seed, schedule ...) is printed at the bottom.
    """
    if found.view.image is None or len(base) != len(found.view) or len(prompts) != len(base):
        counts = f"{len(prompts)} prompts, {len(base)} base images and {len(found.view)} sets of maps"
        raise ValueError(f"{counts} arrived, wanted equally many, the maps with their images.")
    from PIL import Image, ImageDraw, ImageFont

    width = 2 * MARGIN + len(LABELS) * PANEL + (len(LABELS) - 1) * GAP
    row = PANEL + FOOT
    page = Image.new("RGB", (width, 2 * MARGIN + HEAD + len(prompts) * row + 20), PAGE)
    pen, small, large = ImageDraw.Draw(page), ImageFont.load_default(size=16), ImageFont.load_default(size=19)
    for column, label in enumerate(LABELS):
        pen.text((MARGIN + column * (PANEL + GAP), MARGIN), label, font=small, fill=MUTED)
    for index, prompt in enumerate(prompts):
        top = MARGIN + HEAD + index * row
        for column, picture in enumerate(row_of(index, base, found)):
            sharp = Image.Resampling.NEAREST if LABELS[column] == "Segmentation" else Image.Resampling.BICUBIC
            panel = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy()).resize(
                (PANEL, PANEL), sharp
            )
            page.paste(panel, (MARGIN + column * (PANEL + GAP), top))
        pen.text((MARGIN, top + PANEL + 9), prompt, font=large, fill=TEXT)
    pen.text((MARGIN, page.height - MARGIN), facts, font=small, fill=MUTED)
    return torch.from_numpy(np.array(page)).float() / 255


def row_of(index: int, base: Tensor, found: MapImages) -> list[Tensor]:
    """The images of one prompt, (h, w, 3) each, in the order of LABELS."""
    maps = (found.normals[index], found.segmentation[index], found.line[index])
    return [base[index], found.view.image[index], color_depth(found.view[index]).image, *maps]
