"""The tiny text encoder: one vector a word, plus its place in the sentence. The DiT's text stream does the rest."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn

from ..world.captions import VOCABULARY, normalise_words

TOKENS = 24  # the longest caption of the grammar has 23 words
PAD, UNKNOWN = 0, 1


class TinyTextEncoder(nn.Module):
    """`forward`: ids b n -> context b n d. Padding is a learned word, as in the published model, where all rows take part."""

    def __init__(self, width: int = 128, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.words = operations.Embedding(len(VOCABULARY) + 2, width, device=device, dtype=dtype)
        self.places = operations.Embedding(TOKENS, width, device=device, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))

    def encode(self, texts: list[str]) -> Tensor:
        """Context b n d of prompts; the empty prompt is all padding."""
        return self(tokenize(texts).to(next(self.parameters()).device))


def tokenize(texts: list[str]) -> Tensor:
    """Word numbers b n int64, right-padded to TOKENS. Unknown words share one number: see `explain_unknown`."""
    numbers = {word: i + 2 for i, word in enumerate(VOCABULARY)}
    rows = torch.full((len(texts), TOKENS), PAD, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        words = normalise_words(text)[:TOKENS]
        row[: len(words)] = torch.tensor([numbers.get(word, UNKNOWN) for word in words], dtype=torch.int64)
    return rows


def explain_unknown(text: str) -> list[tuple[str, str | None]]:
    """Words of a prompt that the tiny model never saw, each with the nearest word it knows (None if nothing is near)."""
    unknown = dict.fromkeys(word for word in normalise_words(text) if word not in VOCABULARY)
    return [(word, next(iter(difflib.get_close_matches(word, VOCABULARY, 1, 0.5)), None)) for word in unknown]


def dropped_words(text: str) -> list[str]:
    """Words beyond the encoder's length, which the model does not see."""
    return normalise_words(text)[TOKENS:]


def explain_prompt(text: str) -> str | None:
    """A sentence about the words the encoder cannot read or has no place for; None when there are none."""
    said = []
    unknown = explain_unknown(text)
    if unknown:
        named = ", ".join(f"'{word}' (nearest: '{near}')" if near else f"'{word}'" for word, near in unknown)
        said.append(f"The tiny model does not know {named}; it knows {', '.join(VOCABULARY)}.")
    beyond = dropped_words(text)
    if beyond:
        said.append(f"The tiny model reads {TOKENS} words; it did not see '{' '.join(beyond)}'.")
    return " ".join(said) or None
