"""Images of any size scaled to one network input size, and output maps and cameras mapped back to each image.

A `Frame` says where an image lies in the network's image: x' = left + scale_x x, in pixels with corners at
whole numbers. Cropping is a negative offset, padding a positive one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..core.geometry.resize import resize_bicubic
from ..core.padding import pad_to, round_up

Fit = Literal["pad", "crop"]
WHITE = 1.0  # around an image whose shape differs from the others', as the published padding
LARGEST_SIDE = 2048  # pixels of the network's image


@dataclass(frozen=True)
class Frame:
    """Where one image lies in the network's image."""

    size: tuple[int, int]  # (h, w) of the image
    scale: tuple[float, float]  # network pixels per pixel of the image, (y, x)
    offset: tuple[float, float]  # of the image's corner in the network's image, (top, left)


def frame_images(
    images: Sequence[Tensor], fit: Fit, longer_side: int, patch: int
) -> tuple[Tensor, tuple[Frame, ...]]:
    """Images (h, w, 3) in [0, 1] -> (v, 3, H, W) with sides that are multiples of `patch`, and their frames.

    "pad" scales the longer side to `longer_side` and pads each image around its middle: every pixel is seen.
    "crop" is the published way: the width is scaled to `longer_side`, the height rounded to a multiple, and
    what is higher than wide loses its top and bottom.
    """
    if fit not in ("pad", "crop"):
        raise ValueError(f"Expected fit pad or crop, got {fit!r}. Choose one of these.")
    longer_side = max(patch, longer_side // patch * patch)
    place = _pad if fit == "pad" else _crop
    placed = [place(rearrange(image, "h w c -> 1 c h w"), longer_side, patch) for image in images]
    height, width = (max(x.shape[axis] for x, _ in placed) for axis in (-2, -1))
    framed = [_center(x, frame, (height, width)) for x, frame in placed]
    return torch.cat([x for x, _ in framed]), tuple(frame for _, frame in framed)


def _pad(image: Tensor, longer_side: int, patch: int) -> tuple[Tensor, Frame]:
    height, width = image.shape[-2:]
    ratio = longer_side / max(height, width)
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    whole = round_up(size, patch)
    top, left = ((outer - inner) // 2 for outer, inner in zip(whole, size))
    x = resize_bicubic(image, size)
    # the last row and column repeated on all sides, by flipping: half of it above and on the left
    x = pad_to(x.flip(-1, -2), (size[0] + top, size[1] + left)).flip(-1, -2)
    scale = (size[0] / height, size[1] / width)
    return pad_to(x, whole), Frame((height, width), scale, (float(top), float(left)))


def _crop(image: Tensor, longer_side: int, patch: int) -> tuple[Tensor, Frame]:
    height, width = image.shape[-2:]
    rows = max(patch, round(height * longer_side / width / patch) * patch)
    kept = min(rows, longer_side)
    top = (rows - kept) // 2
    x = resize_bicubic(image, (rows, longer_side))[..., top : top + kept, :]
    return x, Frame((height, width), (rows / height, longer_side / width), (-float(top), 0.0))


def _center(x: Tensor, frame: Frame, size: tuple[int, int]) -> tuple[Tensor, Frame]:
    """Centered on a larger white image (h, w)."""
    below, beside = size[0] - x.shape[-2], size[1] - x.shape[-1]
    top, left = below // 2, beside // 2
    padded = F.pad(x, (left, beside - left, top, below - top), value=WHITE)
    return padded, replace(frame, offset=(frame.offset[0] + top, frame.offset[1] + left))


def read_back(maps: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Output maps (c, H, W) resampled bilinearly to the image, (c, h, w), and the pixels (h, w) that were in
    the network's image.
    """
    sides, seen = [], []
    for length, count, scale, offset in zip(maps.shape[-2:], frame.size, frame.scale, frame.offset):
        center = offset + scale * (torch.arange(count, dtype=torch.float32, device=maps.device) + 0.5)
        seen.append((center >= 0) & (center <= length))
        # half a pixel inside the image's own border, so that no padding is mixed in
        low, high = max(offset, 0.0) + 0.5, min(offset + scale * count, length) - 0.5
        center = center.clamp(min(low, high), max(low, high))
        sides.append(2 * center / length - 1)
    grid = torch.stack(torch.meshgrid(sides[1], sides[0], indexing="xy"), dim=-1)
    found = F.grid_sample(maps[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    return found[0], seen[0][:, None] & seen[1][None]


def intrinsics_back(intrinsics: Tensor, frame: Frame, pixel_center: float) -> Tensor:
    """Intrinsics (3, 3) of the network's image in pixels of the input image, whose centers lie at +0.5.

    `pixel_center` is where the network's own convention puts them.
    """
    (scale_y, scale_x), (top, left) = frame.scale, frame.offset
    moved = intrinsics.clone()
    moved[0, 0] /= scale_x
    moved[1, 1] /= scale_y
    moved[0, 2] = (intrinsics[0, 2] + 0.5 - pixel_center - left) / scale_x
    moved[1, 2] = (intrinsics[1, 2] + 0.5 - pixel_center - top) / scale_y
    return moved
