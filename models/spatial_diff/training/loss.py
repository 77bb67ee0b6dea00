"""The losses of SpatialDiff's training: the error of the velocity, and how a batch is noised and weighted.

Conventions: t = 1 noise, t = 0 clean, x_t = (1 - t) x0 + t eps, velocity = eps - x0. Every draw comes from
the generator given, on its device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...core.diffusion.flow import add_noise
from ...core.layers.attention import Attend, attend, attend_with_scores

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class NoiseLevels:
    """The distribution of training's noise levels: logit-normal."""

    mu: float = 0.5
    sigma: float = 1.0

    def draw(self, count: int, generator: Generator) -> Tensor:
        drawn = torch.randn(count, generator=generator, device=generator.device)
        return torch.sigmoid(self.mu + self.sigma * drawn)


def check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(
            f"Expected {name} from 0 to 1 in the recipe's loss, got {value:g}. Correct the recipe."
        )


def check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0 or math.isinf(value):
            raise ValueError(
                f"Expected {name} of at least 0 in the recipe's loss, got {value:g}. Correct the recipe."
            )


def draw_noisy(batch: Batch, levels: NoiseLevels, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t (b, c, h, w), t (b,) and the velocity (b, c, h, w) of a batch's `latent`."""
    latent = batch["latent"].float()
    t = levels.draw(len(latent), generator).to(latent.device)
    noise = torch.randn(latent.shape, generator=generator, device=generator.device).to(latent.device)
    return add_noise(latent, noise, t), t, noise - latent


def flow_error(velocity: Tensor, expected: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean squared error; `weight` broadcasts, and has a mean of 1."""
    return (weight * (velocity.float() - expected).square()).mean()


def weigh_changes(batch: Batch, factor: float, threshold: float = 0.25) -> Tensor:
    """Weights (b, 1, h, w) of mean 1: `factor` where target and reference differ, 1 elsewhere."""
    difference = (batch["latent"].float() - batch["reference"].float()).square().mean(dim=1, keepdim=True)
    weight = torch.where(difference > threshold, factor, 1.0)
    return weight / weight.mean()


def choose_attention(device: torch.device) -> Attend:
    """The attention that trains fastest on a device."""
    return attend_with_scores if device.type == "cpu" else attend
