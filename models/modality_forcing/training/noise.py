"""The noise levels of training: logit-normal for the image, plateau logit-normal for the depth."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


def uniform(count: int, generator: Generator) -> Tensor:
    """Numbers in (0, 1), float64: never 0, where an inverse distribution function is infinite."""
    drawn = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.clamp(1e-9, 1 - 1e-9)


def draw_logit_normal(u: Tensor, mu: float, sigma: float) -> Tensor:
    """Logit-normal noise levels from uniform numbers, by the inverse of the distribution function."""
    return torch.sigmoid(mu + sigma * torch.special.ndtri(u)).float()


def draw_plateau(u: Tensor, mu: float, sigma: float) -> Tensor:
    """Plateau logit-normal from uniform numbers: logit-normal up to its mode, then constant density."""
    mode, density, below, total = plateau(mu, sigma)
    mass = u * total
    rising = torch.sigmoid(mu + sigma * torch.special.ndtri(mass.clamp(max=below)))
    return torch.where(mass < below, rising, mode + (mass - below) / density).float()


def plateau(mu: float, sigma: float) -> tuple[float, float, float, float]:
    """(mode t*, density there, mass below it, total mass before normalising) of the logit-normal; t* solves
    logit(t) - mu - sigma^2 (2t - 1) = 0, which has one root for sigma^2 <= 2."""
    low, high = 0.0, 1.0
    for _ in range(200):
        mode = (low + high) / 2
        if math.log(mode / (1 - mode)) - mu - sigma**2 * (2 * mode - 1) < 0:
            low = mode
        else:
            high = mode
    z = (math.log(mode / (1 - mode)) - mu) / sigma
    density = math.exp(-z * z / 2) / (sigma * math.sqrt(2 * math.pi) * mode * (1 - mode))
    below = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return mode, density, below, below + (1 - mode) * density
