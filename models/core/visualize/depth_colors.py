"""Depth in color: near is bright, far is dark, by a perceptually uniform color map of our own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.view import Spacing, View, percentile

# Far to near in equal steps: OKLab lightness 0.22 to 0.965, hue from violet over red and orange to pale
# yellow, chroma inside sRGB. With uniform lightness equal steps look equal, also in gray print, and for
# color-blind readers.
_ANCHORS = (
    (23, 22, 53), (44, 30, 81), (69, 36, 107), (98, 44, 126), (133, 51, 131), (170, 58, 129), (201, 73, 118),
    (226, 96, 105), (245, 123, 92), (253, 155, 92), (254, 188, 117), (254, 218, 149), (255, 245, 195),
)  # fmt: skip
NO_DEPTH = (0.235, 0.245, 0.270)  # neutral, unlike any color of the map


@dataclass(frozen=True)
class DepthPicture:
    """One depth map in color and the depths of both ends, in the unit of the View.

    They are equal if the depth is constant.
    """

    image: Tensor  # (h, w, 3) in [0, 1]
    near: float
    far: float
    spacing: Spacing
    has_holes: bool

    def depth_at(self, share: float) -> float:
        """The depth that the color map shows at ``share`` of its way from near (0) to far (1)."""
        if self.spacing == "depth":
            return self.near + share * (self.far - self.near)
        if self.spacing == "log":
            return self.near * (self.far / self.near) ** share
        return 1 / (1 / self.near + share * (1 / self.far - 1 / self.near))


def map_colors(nearness: Tensor) -> Tensor:
    """Values ``...`` in [0, 1], 1 = near, to colors (..., 3)."""
    anchors = torch.tensor(_ANCHORS, dtype=torch.float32, device=nearness.device) / 255
    place = nearness.float().clamp(0, 1) * (len(_ANCHORS) - 1)
    before = place.floor().long().clamp(max=len(_ANCHORS) - 2)
    return torch.lerp(anchors[before], anchors[before + 1], (place - before).unsqueeze(-1))


def color_depth(
    view: View, *, spacing: Spacing = "log", near_percentile: float = 0.5, far_percentile: float = 99.5
) -> DepthPicture:
    """Color the depth of a View with batch 1, scaled as View.to_control_image does.

    Invalid pixels are a neutral gray.
    """
    if len(view) != 1:
        raise ValueError(
            f"Expected one depth map, got a batch of {len(view)}. Pass view[0], view[1] ... one by one."
        )
    view.require_valid()
    gray = view.to_control_image(
        spacing=spacing, near_percentile=near_percentile, far_percentile=far_percentile
    )[0, ..., 0]
    mask, valid = view.mask[0], view.depth[view.mask]
    image = torch.where(
        mask.unsqueeze(-1), map_colors(gray), torch.tensor(NO_DEPTH, device=gray.device)
    ).cpu()
    near, far = float(percentile(valid, near_percentile)), float(percentile(valid, far_percentile))
    return DepthPicture(image, near, far, spacing, not bool(mask.all()))
