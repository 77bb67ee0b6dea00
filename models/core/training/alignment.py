"""Auxiliary losses that align features with the content of the image.

Their heads are trained, but never shipped.

Yu et al. 2024 (REPA) align a block's features with those of a pretrained image encoder, which makes diffusion
transformers learn several times faster; Yao et al. 2025 (VA-VAE) do the same to an autoencoder's latents.
Where the exact classes are known, they replace the encoder: cross-entropy per kind of class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Aligner(nn.Module):
    """Classifies each cell of an image from the features of the token that covers it.

    `classes`: number of classes of each kind; `finer`: cells per side of a token.
    """

    def __init__(self, width: int, classes: Sequence[int], finer: int, *, operations=nn):
        super().__init__()
        self.classes, self.finer = tuple(classes), finer
        self.norm = operations.LayerNorm(width)
        self.head = operations.Linear(width, sum(self.classes) * finer * finer)

    def forward(self, rows: Tensor, cells: Tensor) -> Tensor:
        """tokens (b, h w, c) of the image, cells (b, k, s h, s w) -> sum over kinds of the mean
        cross-entropy.
        """
        b, k, height, width = cells.shape
        logits = self.head(self.norm(rows)).float()
        logits = logits.unflatten(2, (-1, self.finer, self.finer)).unflatten(
            1, (height // self.finer, width // self.finer)
        )
        logits = logits.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, height, width)
        parts = zip(logits.split(self.classes, dim=1), cells.long().unbind(1), strict=True)
        # a kind without a known cell in the batch must not make the mean 0/0
        return sum(
            F.cross_entropy(each, kind, ignore_index=-1, reduction="sum") / (kind >= 0).sum().clamp(min=1)
            for each, kind in parts
        )


HALF_TURNS = (1, 2, 4, 8)  # number of sine waves in a position code, from one edge of the image to the other
CODE = 4 * len(HALF_TURNS)  # length of a code: cosine and sine of each wave, vertical and horizontal


class PositionReader(nn.Module):
    """Regresses the position in the image from the features, by one linear map for each of several layers.

    Trained as well, and never shipped. The features of a deep network encode position unasked; those of a
    network of a few layers do not, and then nothing trained on it later can find the same position of another
    image.
    """

    def __init__(self, widths: Sequence[int], *, operations=nn):
        super().__init__()
        self.heads = nn.ModuleList(operations.Linear(width, CODE) for width in widths)

    def forward(self, features: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """features: (b, h w, c) of each layer, for an image of `shape` (h, w) or a whole fraction of it ->
        the mean squared distance to `code_positions`; an untrained reader has about 0.5.
        """
        off = []
        for head, rows in zip(self.heads, features, strict=True):
            target = code_positions(*find_grid(shape, rows.shape[1])).to(rows.device)
            off.append(F.mse_loss(head(rows).float(), target.expand(len(rows), -1, -1)))
        return torch.stack(off).mean()


def find_grid(shape: Sequence[int], spots: int) -> tuple[int, ...]:
    """(height, width) of so many tokens, of an image of `shape` downsampled by a whole factor."""
    smaller = round((math.prod(shape) / spots) ** 0.5)
    return tuple(size // smaller for size in shape)


def code_positions(height: int, width: int) -> Tensor:
    """(height * width, CODE): cosines and sines of each cell's row and column.

    The dot product of two codes falls with their distance, so that attention can look up positions.
    """
    turns = math.pi * torch.tensor(HALF_TURNS, dtype=torch.float32)
    down, across = ((torch.arange(size) + 0.5).div(size)[:, None] * turns for size in (height, width))
    angles = torch.cat([down[:, None].expand(-1, width, -1), across.expand(height, -1, -1)], dim=-1).flatten(
        0, 1
    )
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@contextmanager
def collect_activations(module: nn.Module | None, *, to_input: bool = False) -> Iterator[list[Tensor]]:
    """A forward hook that collects a module's outputs, or its first inputs, into the list while open.

    Without a module the list stays empty.
    """
    activations: list[Tensor] = []
    if module is None:
        yield activations
        return
    handle = module.register_forward_hook(
        lambda module, inputs, output: activations.append(inputs[0] if to_input else output)
    )
    try:
        yield activations
    finally:
        handle.remove()
