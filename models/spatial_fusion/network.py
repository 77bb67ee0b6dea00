"""The depth adapter E of the paper: F = E(D), added to z_t where the denoising network reads it.

b images, h w pixels of the depth; the addend has the latent's channels and 1 / stride of the size. The last
convolution is zero at the start, so that training starts at the base model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DepthAdapterConfig


class AdapterNetwork(nn.Module):
    """Convolutions of stride 2 with SiLU, then one to the latent's channels."""

    def __init__(self, config: DepthAdapterConfig, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        made = {"kernel_size": 3, "padding": 1, "device": device, "dtype": dtype}
        channels = (config.inputs, *config.widths)
        self.down = nn.ModuleList(
            operations.Conv2d(before, after, stride=2, **made)
            for before, after in zip(channels, channels[1:], strict=False)
        )
        self.out = operations.Conv2d(channels[-1], config.latent_channels, **made)
        if self.out.weight.device.type != "meta":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, coded: Tensor, mask: Tensor) -> Tensor:
        """Code and mask (b, h, w), sides multiples of the stride, to the addend (b, c, h / s, w / s)."""
        x = coded[:, None]
        if self.config.invalid == "channel":
            x = torch.cat((x, mask[:, None].to(x)), dim=1)
        for layer in self.down:
            x = F.silu(layer(x))
        addend = self.out(x)
        if self.config.invalid == "zero":
            addend = addend * F.max_pool2d(mask[:, None].to(addend), self.config.stride)
        return addend
