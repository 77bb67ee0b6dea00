"""Alignment: features that are made to say what each spot of the picture shows. Trains along and is never shipped.

Yu et al. 2024 (REPA) pull a block's features towards those of a pretrained image encoder, which makes diffusion transformers learn
several times faster; Yao et al. 2025 (VA-VAE) do the same to an autoencoder's latents. Where the exact classes are known, they
take the encoder's place: cross-entropy per kind of class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F


class Aligner(nn.Module):
    """Reads what each spot of a picture shows from one row of features a token.

    `classes`: how many class numbers each kind has; `finer`: spots to a token's side.
    """

    def __init__(self, width: int, classes: Sequence[int], finer: int, *, operations=nn):
        super().__init__()
        self.classes, self.finer = tuple(classes), finer
        self.norm = operations.LayerNorm(width)
        self.head = operations.Linear(width, sum(self.classes) * finer * finer)

    def forward(self, rows: Tensor, cells: Tensor) -> Tensor:
        """rows b (h w) c of the image, cells b k s*h s*w -> sum over kinds of the mean cross-entropy."""
        b, k, height, width = cells.shape
        logits = self.head(self.norm(rows)).float()
        logits = logits.unflatten(2, (-1, self.finer, self.finer)).unflatten(1, (height // self.finer, width // self.finer))
        logits = logits.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, height, width)
        parts = zip(logits.split(self.classes, dim=1), cells.long().unbind(1), strict=True)
        # a kind that no spot of the batch has must not make the mean 0/0
        return sum(F.cross_entropy(each, kind, ignore_index=-1, reduction="sum") / (kind >= 0).sum().clamp(min=1) for each, kind in parts)


@contextmanager
def listen(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """While open, what the module gives is kept in the list; nothing where there is no module."""
    heard: list[Tensor] = []
    if module is None:
        yield heard
        return
    handle = module.register_forward_hook(lambda module, given, out: heard.append(out))
    try:
        yield heard
    finally:
        handle.remove()
