"""Depth as a picture for people: a colour ramp, and a legend that says unit, direction and range."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .view import View

Style = Literal["colour", "control"]

# near to far, sRGB; lightness falls all the way, so the picture reads the same in grey
RAMP = ((255, 244, 180), (255, 184, 77), (240, 100, 92), (178, 58, 142), (92, 44, 158), (24, 28, 78))
INVALID = (0.45, 0.47, 0.5)
LEGEND_WIDTH = 384  # narrower pictures are enlarged by a whole factor, so that the text fits
PAPER, INK = (24, 26, 32), (228, 230, 234)


def colour_depth(view: View, *, near_percentile: float = 0.0, far_percentile: float = 100.0) -> Tensor:
    """Depth as colours `b h w 3` in [0, 1]: pale yellow is near, dark blue far, grey has no depth.

    Each picture is stretched on its own, linearly in depth, between the two percentiles of its valid pixels.
    """
    nearness = view.to_control_image(spacing="depth", near_percentile=near_percentile, far_percentile=far_percentile)[..., 0]
    invalid = torch.tensor(INVALID, device=nearness.device)
    return torch.where(view.mask.unsqueeze(-1), ramp_colours(1 - nearness), invalid)


def ramp_colours(farness: Tensor) -> Tensor:
    """Colours `... 3` in [0, 1] of numbers `...` from 0 (near) to 1 (far)."""
    stops = torch.tensor(RAMP, dtype=torch.float32, device=farness.device) / 255
    place = farness.clamp(0, 1) * (len(RAMP) - 1)
    low = place.floor().clamp(max=len(RAMP) - 2)
    return torch.lerp(stops[low.long()], stops[low.long() + 1], (place - low).unsqueeze(-1))


def picture_depth(view: View, style: Style, *, near_percentile: float = 0.0, far_percentile: float = 100.0) -> tuple[Tensor, Tensor]:
    """A View as pictures `b h w 3` in [0, 1], and the same with a legend below that says range, unit and direction.

    Style "colour" is `colour_depth`, "control" is `View.to_control_image` in disparity. Below the legend's width a picture is
    enlarged by a whole factor, without smoothing: a depth pixel stays a pixel.
    """
    ends = {"near_percentile": near_percentile, "far_percentile": far_percentile}
    plain = colour_depth(view, **ends) if style == "colour" else view.to_control_image(spacing="disparity", **ends)
    bar = torch.linspace(0, 1, 256)
    bar = ramp_colours(bar) if style == "colour" else (1 - bar).unsqueeze(-1).expand(-1, 3)
    factor = max(1, -(-LEGEND_WIDTH // plain.shape[2]))
    large = plain.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2).float().cpu()
    legends = torch.stack([_legend(large.shape[2], view[index], bar) for index in range(len(view))])
    return plain, torch.cat([large, legends], dim=1)


def _legend(width: int, view: View, bar: Tensor) -> Tensor:
    """One legend `h width 3`."""
    size, margin = 15, 12
    font = ImageFont.load_default(size)
    sheet = Image.new("RGB", (width, 76), PAPER)
    row = Image.fromarray((bar.numpy() * 255).round().astype(np.uint8)[None])
    sheet.paste(row.resize((width - 2 * margin, 12), Image.Resampling.BILINEAR), (margin, margin))
    draw = ImageDraw.Draw(sheet)
    unit = "m" if view.units == "metric" else "relative units"
    if bool(view.mask.any()):
        depth = view.depth[view.mask]
        draw.text((margin, 28), f"near {float(depth.min()):.3g}", fill=INK, font=font)
        draw.text((width - margin, 28), f"{float(depth.max()):.3g} far", fill=INK, font=font, anchor="ra")
    invalid = view.invalid_counts[0]
    draw.text((margin, 50), f"{unit}, larger = farther" + (f", {invalid} pixels invalid" if invalid else ""), fill=INK, font=font)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)
