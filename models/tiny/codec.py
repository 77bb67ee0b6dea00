"""The tiny image codec: 16 pixels to one latent position, like FLUX.2's, but 0.9 million parameters.

As in FLUX.2, the latent is normalized per channel by running statistics, so the network sees unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 16


@dataclass(frozen=True)
class CodecConfig:
    latent_channels: int = 32
    widths: tuple[int, int, int] = (48, 72, 112)  # at 1/4, 1/8 and 1/16 of the image


class ResidualBlock(nn.Module):
    def __init__(self, width: int, *, operations, **place):
        super().__init__()
        self.norm = operations.GroupNorm(8, width, **place)
        self.conv1 = operations.Conv2d(width, width, 3, padding=1, **place)
        self.conv2 = operations.Conv2d(width, width, 3, padding=1, **place)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class TinyCodec(nn.Module):
    """`encode`: image (b, 3, H, W) in [-1, 1] -> latent (b, c, H/16, W/16), unit variance. `decode`: back."""

    def __init__(self, config: CodecConfig = CodecConfig(), *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        place = {"operations": operations, "device": device, "dtype": dtype}
        self.config = config
        w4, w8, w16 = config.widths
        conv = _convolution(**place)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4), conv(48, w4, 3), ResidualBlock(w4, **place),
            conv(w4, w8, 3, stride=2), ResidualBlock(w8, **place),
            conv(w8, w16, 3, stride=2), ResidualBlock(w16, **place), ResidualBlock(w16, **place),
            conv(w16, config.latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            conv(config.latent_channels, w16, 3), ResidualBlock(w16, **place), ResidualBlock(w16, **place),
            conv(w16, 4 * w8, 1), nn.PixelShuffle(2), ResidualBlock(w8, **place), ResidualBlock(w8, **place),
            conv(w8, 4 * w4, 1), nn.PixelShuffle(2), ResidualBlock(w4, **place), ResidualBlock(w4, **place),
            conv(w4, 48, 3), nn.PixelShuffle(4),
        )
        statistics = {"device": device, "dtype": torch.float32}
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, **statistics))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, **statistics))

    def encode(self, image: Tensor) -> Tensor:
        return (self.encoder(image) - _channels(self.latent_mean)) / _channels(self.latent_std)

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(latent * _channels(self.latent_std) + _channels(self.latent_mean))


def _convolution(*, operations, device, dtype):
    def build(inside: int, outside: int, size: int, stride: int = 1) -> nn.Module:
        kwargs = {"stride": stride, "padding": size // 2, "device": device, "dtype": dtype}
        return operations.Conv2d(inside, outside, size, **kwargs)

    return build


def _channels(vector: Tensor) -> Tensor:
    return vector[None, :, None, None]
