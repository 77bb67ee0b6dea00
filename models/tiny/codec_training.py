"""Training of the tiny codec: L1, edge and coarse terms, on a latent with added noise and class alignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from ..core.losses import sum_terms
from ..core.training.alignment import Aligner
from .codec import TinyCodec


@dataclass(frozen=True)
class CodecLoss:
    """Loss weights. `noise`: largest standard deviation added to the latent, uniform from 0 per image."""

    edges: float = 1.0
    coarse: float = 0.5
    noise: float = 0.15
    align: float = 0.02  # cross-entropy of the class of each cell, predicted from the latent
    momentum: float = 0.02  # of the running latent statistics

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or (name == "momentum" and value > 1):
                raise ValueError(
                    f"Expected a factor of at least 0, and momentum up to 1, for {name} in the recipe's "
                    f"loss, got {value}. Correct {name}."
                )


class TrainedCodec(nn.Module):
    """What is trained together: the codec, and the classifier of its latents."""

    def __init__(self, codec: TinyCodec, aligner: Aligner):
        super().__init__()
        self.codec, self.aligner = codec, aligner


def codec_loss(
    trained: TrainedCodec, batch: Mapping[str, Tensor], generator: Generator, settings: CodecLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """batch: image (b, 3, H, W) in [-1, 1], cells as the aligner takes them.

    As with a batch norm, training normalizes by the batch and keeps running statistics.
    """
    model, image = trained.codec, batch["image"]
    raw = model.encoder(image).float()
    mean, std = (
        raw.mean((0, 2, 3), keepdim=True),
        raw.var((0, 2, 3), unbiased=False, keepdim=True).add(1e-6).sqrt(),
    )
    with torch.no_grad():
        model.latent_mean.lerp_(mean.flatten(), settings.momentum)
        model.latent_std.lerp_(std.flatten(), settings.momentum)
    latent = (raw - mean) / std
    strength = settings.noise * torch.rand(len(image), 1, 1, 1, generator=generator)
    noise = torch.randn(latent.shape, generator=generator)
    noisy = latent + (strength * noise).to(latent)
    picture = model.decoder(noisy * std + mean).float()
    parts = {
        "pixel": (picture - image).abs().mean(),
        "edges": settings.edges * edge_distance(picture, image),
        "coarse": settings.coarse * (_shrink(picture) - _shrink(image)).abs().mean(),
        "align": settings.align * trained.aligner(rearrange(noisy, "b c h w -> b (h w) c"), batch["cells"]),
    }
    loss, logs = sum_terms(parts)
    return loss, {**logs, "psnr": psnr(picture, image)}


def edge_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean L1 between the horizontal and vertical pixel differences of images (b, 3, h, w)."""
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def _shrink(image: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(image, 4)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB, for the range [-1, 1]."""
    return 10 * torch.log10(4 / (a.detach() - b).pow(2).mean().clamp_min(1e-12))
