"""Depth as the network takes it: divided by its mean per image, then the mip-NeRF 360 contraction into (0,
2). Pure functions.

Depth is z-depth in any unit, larger = farther; the scale is lost in encoding and cannot be recovered.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.geometry.view import is_valid

SKY_CODE = 2.0  # infinite depth, contracted
# a network trained with SKY_CODE predicts sky where it is above this: 8 times the mean depth
SKY_BEYOND = 2 - 1 / 8
Z_MAX = 1.99  # decodes to 100 times the mean depth; at 2 the inverse is infinite, above 2 negative


def contract(r: Tensor) -> Tensor:
    """r where |r| <= 1, else sign(r) (2 - 1/|r|): maps all numbers into (-2, 2)."""
    return torch.where(r.abs() <= 1, r, r.sign() * (2 - 1 / r.abs().clamp(min=1)))


def uncontract(z: Tensor, *, z_max: float | None = Z_MAX) -> Tensor:
    """Inverse of `contract`: z where |z| <= 1, else z / (2|z| - z^2), with z first clamped to at most
    `z_max`.

    `z_max=None` is the released form, which diverges near 2 and is negative above.
    """
    if z_max is not None:
        z = z.clamp(max=z_max)
    size = z.abs().clamp(min=1)
    return torch.where(z.abs() <= 1, z, z / (2 * size - size**2))


def unit_mean(depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each depth map of (b, ...) by the mean of its valid pixels: (depth / mean, mean (b,)). Invalid
    pixels become 0.

    `mask` is True at valid pixels. A map without a valid pixel returns zeros and the mean 1e-12.
    """
    depth = torch.where(mask, depth, torch.zeros_like(depth))
    total, count = depth.flatten(1).sum(dim=1), mask.flatten(1).sum(dim=1)
    mean = (total / count.clamp(min=1)).clamp(min=1e-12)
    return depth / mean.reshape(-1, *[1] * (depth.ndim - 1)), mean


def depth_to_net(
    depth: Tensor, mask: Tensor | None = None, fill: Tensor | None = None, *, sky: Tensor | None = None
) -> Tensor:
    """Depth (b, 1, h, w) -> network space. NaN, infinite, zero and negative pixels, and those outside `mask`,
    are invalid.

    Invalid pixels take the value of `fill` (network space, same shape; the network was trained with unit
    Gaussian noise there), else 0; where `sky` (bool, same shape) is True they take SKY_CODE, which only a
    network with `infinite_sky` understands.
    """
    valid = is_valid(depth) if mask is None else is_valid(depth) & mask
    net = contract(unit_mean(depth, valid)[0])
    net = net if fill is None else torch.where(valid, net, fill)
    return net if sky is None else torch.where(sky & ~valid, torch.full_like(net, SKY_CODE), net)


def net_to_depth(net: Tensor, *, z_max: float | None = Z_MAX, infinite_sky: bool = False) -> Tensor:
    """Network space -> depth of about unit mean, at most that of `z_max`. Values at or below 0 become 0, an
    invalid depth.

    `z_max=None` is the released form without a bound: values below -2 become positive depths. With
    `infinite_sky`, values above SKY_BEYOND become infinite, which is sky in a View.
    """
    depth = uncontract(net, z_max=None) if z_max is None else uncontract(net.clamp(min=0), z_max=z_max)
    return torch.where(net > SKY_BEYOND, torch.full_like(depth, torch.inf), depth) if infinite_sky else depth
