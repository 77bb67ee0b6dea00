"""The part of an image that MoGe's evaluation looks at: a centered field of view at a fixed size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_to_view(
    image: Tensor, depth: Tensor, intrinsics: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Image (h, w, 3) and depth (h, w) cropped around the principal point to an aspect ratio, and resized.

    `intrinsics` (3, 3) count in widths and heights. The optical axis stays where it is: MoGe turns it to the
    middle of the image, which is the same crop for a centered camera.
    """
    rows, columns = depth.shape
    middle_x, middle_y = float(intrinsics[0, 2]) * columns, float(intrinsics[1, 2]) * rows
    # a pixel of the crop is as wide as high, whatever those of the image are
    stretch = (float(intrinsics[0, 0]) * columns) / (float(intrinsics[1, 1]) * rows)
    half_x = min(middle_x, columns - middle_x, min(middle_y, rows - middle_y) * stretch * width / height)
    half_y = half_x * height / width / stretch
    top, left = round(middle_y - half_y), round(middle_x - half_x)
    bottom, right = round(middle_y + half_y), round(middle_x + half_x)
    image, depth = image[top:bottom, left:right], depth[top:bottom, left:right]
    if depth.shape == (height, width):
        return image, depth
    smaller = height < depth.shape[0]
    resized = F.interpolate(
        image.movedim(-1, 0)[None], (height, width), mode="bicubic", align_corners=False, antialias=smaller
    )
    return resized[0].movedim(0, -1).clamp(0, 1), _nearest(depth, height, width)


def _nearest(depth: Tensor, height: int, width: int) -> Tensor:
    rows = ((torch.arange(height) + 0.5) * depth.shape[0] / height).long()
    columns = ((torch.arange(width) + 0.5) * depth.shape[1] / width).long()
    return depth[rows][:, columns]
