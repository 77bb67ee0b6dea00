"""Position ids and RoPE tables: FLUX.2's four axes (modality, row, column, text index), and the two axes
(row, column) of image encoders, whose channel pairs are ordered differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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


def joint_table(
    axes_dim: tuple[int, ...], theta: float, text: int, grid: tuple[int, int], depth: bool,
    device: torch.device,
) -> RotaryTable:  # fmt: skip
    """`rotary_table` of text tokens, an image's token grid and, with `depth`, the same grid of its depth."""
    ids = [text_positions(text, device=device), grid_positions(*grid, device=device)]
    if depth:
        ids.append(grid_positions(*grid, modality=1, device=device))
    return rotary_table(torch.cat(ids), axes_dim, theta)


@lru_cache(maxsize=4)  # some megabytes each at 1024 pixels
def _kept(*given) -> RotaryTable:
    with torch.inference_mode(False), torch.no_grad():  # ordinary tensors, which training may use later
        return joint_table(*given)


def kept_joint_table(*given) -> RotaryTable:
    """`joint_table`, computed once for the steps of a run; torch.compile follows the computation itself."""
    return joint_table(*given) if torch.compiler.is_compiling() else _kept(*given)


def apply_rotary(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate channel pairs (2i, 2i+1) of x (b, h, n, d) by their angles, in float32; returns x's dtype."""
    cos, sin = table
    even, odd = rearrange(x.float(), "b h n (d two) -> two b h n d", two=2)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rearrange(turned, "b h n d two -> b h n (d two)").to(x.dtype)


def grid_rotary_table(
    rows: int, columns: int, head_dim: int, base: float, *, special: int = 0, device=None
) -> RotaryTable:
    """Cosines and sines (n, 2, d/4) of row and column for `special` tokens, then a row-major patch grid.

    Special tokens (camera, registers) are at position (0, 0), patches begin at (1, 1).
    """
    y, x = torch.meshgrid(torch.arange(rows) + 1, torch.arange(columns) + 1, indexing="ij")
    patches = rearrange(torch.stack((y, x)), "yx h w -> (h w) yx")
    positions = torch.cat((patches.new_zeros(special, 2), patches))
    return positions_rotary_table(positions.to(device), head_dim, base)


def positions_rotary_table(positions: Tensor, head_dim: int, base: float) -> RotaryTable:
    """Cosines and sines (n, 2, d/4) of positions (n, 2); each axis turns half of the head's channels."""
    half = head_dim // 2
    exponent = torch.arange(0, half, 2, dtype=torch.float32, device=positions.device) / half
    angle = positions.float()[..., None] / base**exponent
    return angle.cos(), angle.sin()


def apply_grid_rotary(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate x (b, h, n, d) by row in the first half of its channels and by column in the second.

    Channel i of a half pairs with channel i + d/4 of the head; float32 inside, returns x's dtype.
    """
    cos, sin = table
    first, second = rearrange(x.float(), "b h n (half two k) -> two b h n half k", half=2, two=2)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2)
    return rearrange(turned, "b h n half two k -> b h n (half two k)").to(x.dtype)
