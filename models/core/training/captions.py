"""Captions of a batch: one of several for each image, or the empty prompt (caption dropout)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .loop import Batch


def draw_captions(batch: Batch, generator: Generator, dropout: float) -> Tensor:
    """Each image's token ids or context: one caption of several, some replaced by the empty prompt's."""
    key = "tokens" if "tokens" in batch else "context"
    captions = batch[key]
    draw = {"generator": generator, "device": generator.device, "dtype": torch.float64}
    if captions.ndim == (3 if key == "tokens" else 4):
        choice = (torch.rand(len(captions), **draw) * captions.shape[1]).long().to(captions.device)
        captions = captions[torch.arange(len(captions), device=captions.device), choice]
    empty = batch.get(f"empty_{key}")
    dropped = torch.rand(len(captions), **draw) < dropout
    if not dropout:
        return captions
    if empty is None:
        raise ValueError(
            f"Expected empty_{key} in the batch for caption_dropout {dropout}, got none. Set "
            "caption_dropout to 0."
        )
    return put_empty(captions, empty, dropped)


def put_empty(captions: Tensor, empty: Tensor, dropped: Tensor) -> Tensor:
    """(b, ...) with the empty prompt's values (...) in each sample that is dropped (b,)."""
    chosen = dropped.to(captions.device).reshape(-1, *[1] * (captions.ndim - 1))
    return torch.where(chosen, empty.to(captions), captions)
