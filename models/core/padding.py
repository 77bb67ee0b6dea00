"""Padding to multiples of a network's patch size or an autoencoder's stride, and cropping back."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def round_up(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """The smallest (height, width) of at least `size` whose sides are multiples."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def pad_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """(b, c, h, w) padded below and on the right to `size` by repeating its last row and column."""
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]), mode="replicate")


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first rows and columns of (b, c, h, w): undoes :func:`pad_to`."""
    return x[..., : size[0], : size[1]]


def pad_to_patch(latent: Tensor, patch: int) -> Tensor:
    """A latent padded at the bottom and the right to whole patches, circularly as ComfyUI does."""
    down, across = -latent.shape[-2] % patch, -latent.shape[-1] % patch
    return F.pad(latent, (0, across, 0, down), mode="circular") if down or across else latent
