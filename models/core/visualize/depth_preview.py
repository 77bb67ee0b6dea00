"""A depth as an image: in color or near-white, and beside its image with a legend of range, unit and
direction.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..geometry.view import View, percentile
from .depth_colors import DepthPicture, color_depth, map_colors

Style = Literal["colour", "control"]

# narrower images are enlarged by a whole factor, so that the legend fits and pixels stay square;
PANEL = 320
TALLEST = 4 * PANEL  # but not beyond this height: a narrow strip is centered in its panel instead
PAPER, INK, MUTED = (22, 23, 27), (236, 236, 238), (148, 153, 163)
GAP, MARGIN, LINE, LEGEND = 8, 12, 15, 74


def picture_depth(
    view: View, style: Style, *, near_percentile: float = 0.0, far_percentile: float = 100.0
) -> list[DepthPicture]:
    """One image per depth map, each scaled on its own between two percentiles of its valid pixels.

    "colour": bright is near, dark is far, logarithmic in depth. "control": white is near, black is far,
    linear in disparity, for depth ControlNets. ValueError if a map has no valid pixel.
    """
    picture = _control if style == "control" else color_depth
    views = [view[index] for index in range(len(view.require_valid()))]
    return [picture(one, near_percentile=near_percentile, far_percentile=far_percentile) for one in views]


def _control(view: View, *, near_percentile: float, far_percentile: float) -> DepthPicture:
    image = view.to_control_image(
        spacing="disparity", near_percentile=near_percentile, far_percentile=far_percentile
    )[0].cpu()
    valid = view.depth[view.mask]
    near, far = float(percentile(valid, near_percentile)), float(percentile(valid, far_percentile))
    return DepthPicture(image, near, far, "disparity", not bool(view.mask.all()))


def explain_depth(view: View, shown: list[DepthPicture], style: Style) -> Tensor:
    """Sheets (b, h, w, 3) in [0, 1]: the image of each View where it has one, its depth, and the legend
    below.
    """
    return torch.stack([_sheet(view[index], picture, style) for index, picture in enumerate(shown)])


def _sheet(view: View, shown: DepthPicture, style: Style) -> Tensor:
    rows, columns = shown.image.shape[:2]
    factor = max(1, min(-(-PANEL // columns), TALLEST // rows))
    panels = [_enlarge(shown.image, factor, Image.Resampling.NEAREST)]
    if view.image is not None:
        panels.insert(0, _enlarge(view.image[0], factor, Image.Resampling.BICUBIC))
    width, height = max(panels[0].width, PANEL), panels[0].height
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + LEGEND), PAPER)
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index * (width + GAP) + (width - panel.width) // 2, 0))
    _legend(sheet, view, shown, style, (sheet.width - width + MARGIN, height + MARGIN), width - 2 * MARGIN)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)


def _enlarge(picture: Tensor, factor: int, filtering: Image.Resampling) -> Image.Image:
    """An image (h, w, 3) in [0, 1], enlarged by a whole factor."""
    image = Image.fromarray((picture.float().cpu().clamp(0, 1).numpy() * 255).round().astype(np.uint8))
    return image.resize((image.width * factor, image.height * factor), filtering)


def _legend(
    sheet: Image.Image, view: View, shown: DepthPicture, style: Style, corner: tuple[int, int], width: int
) -> None:
    """A bar from near to far, the depths at its ends and middle, then unit, direction and missing pixels."""
    (left, top), pen, font = corner, ImageDraw.Draw(sheet), ImageFont.load_default(LINE)
    nearness = torch.linspace(1, 0, width)
    bar = map_colors(nearness) if style == "colour" else nearness.unsqueeze(-1).expand(width, 3)
    sheet.paste(_enlarge(bar.expand(10, width, 3), 1, Image.Resampling.NEAREST), corner)
    near, middle, far = (f"{shown.depth_at(share):.3g}" for share in (0, 0.5, 1))
    for place, anchor, text in (
        (left, "la", f"near: {near}"),
        (left + width // 2, "ma", middle),
        (left + width, "ra", f"far: {far}"),
    ):
        pen.text((place, top + 15), text, fill=INK, font=font, anchor=anchor)
    unit = "metres" if view.units == "metric" else "relative units"
    holes = f", {view.invalid_counts[0]} pixels without depth" if shown.has_holes else ""
    pen.text((left, top + 37), f"{unit}, larger = farther{holes}", fill=MUTED, font=font)
