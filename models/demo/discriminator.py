"""What tells rendered pictures from the codec's, patch by patch; it trains along with the decoder and is never shipped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """Image b 3 H W in [-1, 1] -> logits b 1 H/8 W/8, above 0 = rendered; each sees about 45 pixels (Isola et al. 2017)."""

    def __init__(self, width: int = 24, *, operations=torch.nn):
        super().__init__()
        widths, layers = (12, width, 2 * width, 3 * width), [nn.PixelUnshuffle(2)]
        for inside, outside, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
            layers += [operations.Conv2d(inside, outside, 3, stride=stride, padding=1), nn.LeakyReLU(0.2)]
        layers += [operations.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, operations.Conv2d(widths[-1], 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def adversarial_losses(model: PatchDiscriminator, made: Tensor, real: Tensor, noise: Tensor, smooth: float) -> Mapping[str, Tensor]:
    """Two losses for one backward pass: "fool" reaches `made` alone, "tell" the discriminator alone.

    Logistic, not saturating (Goodfellow et al. 2014). `smooth` times the square by which `noise` on real pictures moves the
    logits: a first-order stand-in for the R1 gradient penalty (Lin et al. 2025), which would need second derivatives.
    """
    frozen = {name: value.detach() for name, value in model.named_parameters()}
    fool = F.softplus(-torch.func.functional_call(model, frozen, (made,)).float()).mean()
    count = len(real)
    logits = model(torch.cat([made.detach(), real, real + noise])).float()
    told, true, moved = logits.split(count)
    tell = F.softplus(told).mean() + F.softplus(-true).mean() + smooth * (moved - true).square().mean()
    return {"fool": fool, "tell": tell}
