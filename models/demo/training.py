"""Training the tiny codec: reconstruction with sharp edges, from a latent that tolerates noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .codec import TinyCodec


@dataclass(frozen=True)
class CodecLoss:
    """Weights of the loss. `noise`: largest standard deviation added to the unit-variance latent, drawn evenly from 0 per picture."""

    edges: float = 1.0
    coarse: float = 0.5
    noise: float = 0.35
    momentum: float = 0.02  # of the running latent statistics


def codec_loss(
    model: TinyCodec, batch: Mapping[str, Tensor], generator: Generator, settings: CodecLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """batch["image"] b 3 H W in [-1, 1]. As with a batch norm, training normalises by the batch and keeps running statistics."""
    image = batch["image"]
    raw = model.encoder(image).float()
    mean, std = raw.mean((0, 2, 3)), raw.var((0, 2, 3), unbiased=False).add(1e-6).sqrt()
    with torch.no_grad():
        model.latent_mean.lerp_(mean, settings.momentum)
        model.latent_std.lerp_(std, settings.momentum)
    latent = (raw - mean[:, None, None]) / std[:, None, None]
    strength = settings.noise * torch.rand(len(image), 1, 1, 1, generator=generator)
    noise = torch.randn(latent.shape, generator=generator)
    noisy = latent + (strength * noise).to(latent)
    picture = model.decoder(noisy * std[:, None, None] + mean[:, None, None]).float()
    pixel = (picture - image).abs().mean()
    edges = _edge_distance(picture, image)
    coarse = (_shrink(picture) - _shrink(image)).abs().mean()
    loss = pixel + settings.edges * edges + settings.coarse * coarse
    return loss, {"pixel": pixel.detach(), "edges": edges.detach(), "psnr": _psnr(picture, image)}


def _edge_distance(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def _shrink(image: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(image, 4)


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    """In dB, for the range [-1, 1]."""
    return 10 * torch.log10(4 / (a.detach() - b).pow(2).mean().clamp_min(1e-12))
