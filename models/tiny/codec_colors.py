"""Latent to RGB for previews: the least-squares linear map, fitted on the codec itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..core.protocols import ImageCodec
from .codec import STRIDE

CELLS = 4  # side of an image in latent positions
PICTURES = 48
DAMPING = 1e-3  # of the latents' own size: directions that these images never take are left out


def random_pictures(count: int, seed: int, stride: int = STRIDE) -> Tensor:
    """Images of colors that change from patch to patch, and within them: (count, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    size = CELLS * stride
    coarse, fine = (
        torch.rand(count, 3, side, side, generator=generator) * 2 - 1 for side in (CELLS // 2, CELLS * 4)
    )
    coarse, fine = (F.interpolate(part, (size, size), mode="bilinear") for part in (coarse, fine))
    return (coarse + 0.4 * fine).clamp(-1, 1)


@torch.no_grad()
def fit_colors(codec: ImageCodec, seed: int = 0, *, stride: int = STRIDE) -> tuple[Tensor, Tensor]:
    """(factors (c, 3), bias (3,)): latent @ factors + bias is about the mean color, in [-1, 1], of the latent
    position's pixels.

    `stride`: side of a latent position in pixels.
    """
    pictures = random_pictures(PICTURES, seed, stride)
    latents = rearrange(codec.encode(pictures).float(), "b c h w -> (b h w) c")
    colors = rearrange(F.avg_pool2d(pictures, stride), "b c h w -> (b h w) c")
    middle, mean = latents.mean(dim=0), colors.mean(dim=0)
    centered = latents - middle
    square = centered.T @ centered
    damped = square + DAMPING * square.diagonal().mean() * torch.eye(len(square))
    factors = torch.linalg.solve(damped, centered.T @ (colors - mean))
    return factors, mean - middle @ factors
