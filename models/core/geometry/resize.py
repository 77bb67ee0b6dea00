"""Antialiased resizing of images (b, c, h, w), the outer edges of both sizes aligned."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize_antialiased(x: Tensor, size: Sequence[int]) -> Tensor:
    """(b, c, h, w) bilinearly at another size (height, width); `x` itself if it has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", antialias=True, align_corners=False)


def resize_bicubic(x: Tensor, size: Sequence[int]) -> Tensor:
    """The same by cubic interpolation, clamped to [0, 1], which cubic interpolation overshoots."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
