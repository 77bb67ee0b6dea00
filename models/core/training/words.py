"""Captions of a batch: one of several for each image, or the empty prompt (caption dropout)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .loop import Batch


def draw_words(batch: Batch, generator: Generator, dropout: float) -> Tensor:
    """Each image's word numbers or context, one caption of several, some replaced by those of the empty
    prompt.
    """
    key = "tokens" if "tokens" in batch else "context"
    words = batch[key]
    if words.ndim == (3 if key == "tokens" else 4):
        choice = (torch.rand(len(words), generator=generator, dtype=torch.float64) * words.shape[1]).long()
        words = words[torch.arange(len(words)), choice.to(words.device)]
    empty = batch.get(f"empty_{key}")
    dropped = torch.rand(len(words), generator=generator, dtype=torch.float64) < dropout
    if not dropout:
        return words
    if empty is None:
        raise ValueError(
            f"caption_dropout is {dropout}, but the batch has no empty_{key} to put in a caption's place; "
            "set it to 0."
        )
    return put_empty(words, empty, dropped)


def put_empty(words: Tensor, empty: Tensor, dropped: Tensor) -> Tensor:
    """(b, ...) with the empty prompt's values (...) in each sample that is dropped (b,)."""
    chosen = dropped.to(words.device).reshape(-1, *[1] * (words.ndim - 1))
    return torch.where(chosen, empty.to(words), words)
