"""How depth enters the adapter: coded per image, free of its unknown scale, and resized over valid pixels.

Depth (b, h, w) is z-depth in any unit, larger = farther; a mask (b, h, w) is True at valid pixels. The code
of invalid pixels is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.geometry.view import percentile

COVERED = 0.5  # least share of valid pixels under a resized one


def code_depth(depth: Tensor, mask: Tensor, *, code: str, bound: float, least_iqr: float) -> Tensor:
    """The code (b, h, w) of depth maps, differentiable; see `DepthAdapterConfig` for the two codes.

    A map without a valid pixel is 0 everywhere.
    """
    rows = []
    for found, known in zip(depth, mask, strict=True):
        valid, row = found[known], torch.zeros_like(found)
        rows.append(row)
        if not valid.numel():
            continue
        if code == "unit_mean":
            r = valid / valid.mean()
            row[known] = torch.where(r <= 1, r, 2 - 1 / r.clamp(min=1)) - 1
        else:
            log = valid.log()
            low, median, high = (percentile(log, percent) for percent in (25, 50, 75))
            row[known] = ((log - median) / (high - low).clamp(min=least_iqr)).clamp(-bound, bound)
    return torch.stack(rows) if rows else torch.zeros_like(depth)


def resize_code(coded: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Code and mask (b, h, w) at another (height, width): antialiased means over valid pixels alone."""
    if tuple(coded.shape[-2:]) == tuple(size):
        return coded, mask
    weight = mask.to(coded.dtype)
    planes = torch.stack((coded * weight, weight), dim=1)
    total, cover = F.interpolate(planes, size, mode="bilinear", antialias=True).unbind(1)
    known = cover >= COVERED
    return torch.where(known, total / cover.clamp(min=COVERED), 0.0), known


