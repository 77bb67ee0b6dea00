"""Position ids and RoPE tables of the FLUX.2 family: four axes (modality, row, column, text index)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

RotaryTable = tuple[Tensor, Tensor]


def grid_positions(
    height: int, width: int, *, modality: int = 0, device: torch.device | None = None
) -> Tensor:
    """Ids of a row-major token grid: (h w, 4) float32, each (modality, row, column, 0)."""
    ids = torch.zeros(height, width, 4, dtype=torch.float32, device=device)
    ids[..., 0] = modality
    ids[..., 1] = torch.arange(height, dtype=torch.float32, device=device)[:, None]
    ids[..., 2] = torch.arange(width, dtype=torch.float32, device=device)
    return rearrange(ids, "h w axes -> (h w) axes")


def text_positions(count: int, *, device: torch.device | None = None) -> Tensor:
    """Ids of text tokens: (n, 4) float32, each (0, 0, 0, index)."""
    ids = torch.zeros(count, 4, dtype=torch.float32, device=device)
    ids[:, 3] = torch.arange(count, dtype=torch.float32, device=device)
    return ids


def rotary_table(positions: Tensor, axes_dim: Sequence[int], theta: float) -> RotaryTable:
    """Cosines and sines: positions (n, axes) -> two float32 tables (n, d/2), axes concatenated."""
    angles = []
    for axis, dim in enumerate(axes_dim):
        exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
        angles.append(positions[:, axis, None] * (1.0 / theta**exponent))
    angle = torch.cat(angles, dim=-1)
    return angle.cos(), angle.sin()


def apply_rotary(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate channel pairs (2i, 2i+1) of x (b, h, n, d) by their angles, in float32; returns x's dtype."""
    cos, sin = table
    even, odd = rearrange(x.float(), "b h n (d two) -> two b h n d", two=2)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rearrange(turned, "b h n d two -> b h n (d two)").to(x.dtype)
