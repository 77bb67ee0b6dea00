"""Transformer blocks and the DINOv2 image encoder with registers, under the released parameter names.

Letters: b batch, n tokens, h heads, d head width, c channels; `h w` only beside c.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import Attend, attend
from .positions import RotaryTable, apply_grid_rotary


class SelfAttention(nn.Module):
    """Multi-head self-attention; with `qk_norm` a LayerNorm over each head's q and k, before the rotation."""

    def __init__(
        self, dim: int, heads: int, *, qk_norm: bool = False, operations=torch.nn, device=None, dtype=None
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.heads = heads
        self.qkv = operations.Linear(dim, 3 * dim, **factory)
        norm = {"eps": 1e-5, **factory}
        self.q_norm = operations.LayerNorm(dim // heads, **norm) if qk_norm else nn.Identity()
        self.k_norm = operations.LayerNorm(dim // heads, **norm) if qk_norm else nn.Identity()
        self.proj = operations.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, table: RotaryTable | None, attend: Attend) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = apply_grid_rotary(q, table), apply_grid_rotary(k, table)
        return self.proj(attend(q, k, v))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int, out: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.fc1 = operations.Linear(dim, hidden, device=device, dtype=dtype)
        self.fc2 = operations.Linear(hidden, out, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, dim: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.to(device=x.device, dtype=x.dtype)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale: x (b, n, c) -> (b, n, c)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        eps: float = 1e-6,
        operations=torch.nn,
        device=None,
        dtype=None,
    ):
        super().__init__()
        made = {"operations": operations, "device": device, "dtype": dtype}
        factory = {"device": device, "dtype": dtype}
        self.norm1 = operations.LayerNorm(dim, eps=eps, **factory)
        self.attn = SelfAttention(dim, heads, qk_norm=qk_norm, **made)
        self.ls1 = LayerScale(dim, **made)
        self.norm2 = operations.LayerNorm(dim, eps=eps, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim, **made)
        self.ls2 = LayerScale(dim, **made)

    def forward(self, x: Tensor, table: RotaryTable | None = None, attend: Attend = attend) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), table, attend))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Image (b, 3, h, w) -> patch tokens (b, n, c), row-major."""

    def __init__(self, patch: int, dim: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.proj = operations.Conv2d(3, dim, patch, stride=patch, device=device, dtype=dtype)

    def forward(self, image: Tensor) -> Tensor:
        return rearrange(self.proj(image), "b c h w -> b (h w) c")


class VisionTransformer(nn.Module):
    """DINOv2 with register tokens. `table_side` is the side of the learned position table, in patches."""

    def __init__(
        self,
        *,
        patch: int = 14,
        table_side: int = 37,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        registers: int = 4,
        operations=torch.nn,
        device=None,
        dtype=None,
    ):
        super().__init__()
        made = {"operations": operations, "device": device, "dtype": dtype}
        factory = {"device": device, "dtype": dtype}
        self.patch = patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim, **factory))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + table_side**2, dim, **factory))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim, **factory))
        # of DINOv2's training; inference leaves it unused
        self.mask_token = nn.Parameter(torch.zeros(1, dim, **factory))
        self.patch_embed = PatchEmbed(patch, dim, **made)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio=mlp_ratio, **made) for _ in range(depth))
        self.norm = operations.LayerNorm(dim, eps=1e-6, **factory)

    def forward(self, image: Tensor, *, attend: Attend = attend, on_block=None) -> tuple[Tensor, Tensor]:
        """Normalized patch tokens (b, n, c), and class and register tokens (b, 1 + r, c).

        image (b, 3, h, w) in ImageNet's normalization, its sides multiples of the patch size. `on_block` is
        called without arguments after each block.
        """
        x = self.patch_embed(image)
        rows, columns = (side // self.patch for side in image.shape[-2:])
        table = interpolate_positions(self.pos_embed.to(x), rows, columns)
        first = self.cls_token.to(x).expand(len(x), -1, -1) + table[:, :1]
        registers = self.register_tokens.to(x).expand(len(x), -1, -1)
        x = torch.cat((first, registers, x + table[:, 1:]), dim=1)
        for block in self.blocks:
            x = block(x, attend=attend)
            if on_block:
                on_block()
        x = self.norm(x)
        special = 1 + registers.shape[1]
        return x[:, special:], x[:, :special]


def interpolate_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """A position table (1, 1 + side^2, c), class entry first, for a grid: (1, 1 + rows columns, c).

    It is used as it is for a square grid of its own side alone; any other grid gets antialiased bicubic
    interpolation, in float32.
    """
    side = math.isqrt(table.shape[1] - 1)
    if rows == columns == side:
        return table
    grid = rearrange(table[:, 1:].float(), "one (h w) c -> one c h w", h=side)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
    return torch.cat((table[:, :1], rearrange(grid, "one c h w -> one (h w) c").to(table.dtype)), dim=1)
