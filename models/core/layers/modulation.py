"""Timestep embedding and adaptive layer norm (shift, scale, gate) as FLUX.2 computes them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(NamedTuple):
    """One shift, scale, gate triple, each (b, 1 or n, c). `scale` is already 1 + the projected value."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def timestep_embedding(
    t: Tensor, dim: int, *, dtype: torch.dtype, max_period: float = 10000, time_factor: float = 1000.0
) -> Tensor:
    """Cosines, then sines, of time_factor * t * max_period^(-2k/dim): t (b,) -> (b, dim) in `dtype`.

    t is rounded to `dtype` before the factor and the product is rounded again. In bfloat16 this quantizes t
    visibly; the released model was trained this way, so it is intended and must not be corrected.
    """
    half = dim // 2
    scaled = t.to(dtype) * time_factor
    frequency = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angle = scaled.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1).to(dtype)


class TimeEmbedder(nn.Module):
    """Two linear layers with SiLU between: timestep embedding -> vec."""

    def __init__(self, in_dim: int, hidden_size: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.in_layer = operations.Linear(in_dim, hidden_size, bias=False, device=device, dtype=dtype)
        self.out_layer = operations.Linear(hidden_size, hidden_size, bias=False, device=device, dtype=dtype)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(embedding)))


class ModulationProjection(nn.Module):
    """vec (b, c) -> `count` modulation triples, shared by all blocks that take them."""

    def __init__(self, hidden_size: int, count: int, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.count = count
        self.lin = operations.Linear(
            hidden_size, 3 * count * hidden_size, bias=False, device=device, dtype=dtype
        )

    def forward(self, vec: Tensor) -> tuple[Modulation, ...]:
        parts = self.lin(F.silu(vec))[:, None].chunk(3 * self.count, dim=-1)
        return tuple(Modulation(parts[i], 1 + parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """scale * LayerNorm(x) + shift, without learned norm parameters; `scale` is 1 + the projected value."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale)


def stack_modulation(parts: list[tuple[Modulation, int]]) -> Modulation:
    """Modulation per token of a sequence: [(triple, tokens), ...] -> one triple of (b, sum of tokens, c)."""
    columns = zip(*(triple for triple, _ in parts), strict=True)
    rows = [count for _, count in parts]
    return Modulation(
        *(
            torch.cat([x.expand(-1, n, -1) for x, n in zip(column, rows, strict=True)], dim=1)
            for column in columns
        )
    )
