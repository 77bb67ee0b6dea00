"""The tiny text encoder: one embedding per word, plus a position embedding.

A DiT's text stream processes them further. A UNet has none, so its encoder has transformer layers.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..core.layers.attention import attend
from .chinese import has_chinese, translate_chinese
from .vocabulary import SYNONYMS, VOCABULARY, normalize_words

TOKENS = 24  # the longest caption of the grammar has 23 words
PAD, UNKNOWN = 0, 1
HEAD_WIDTH = 32


class TextLayer(nn.Module):
    """A pre-norm transformer layer, self-attention and MLP with residuals: x (b, n, c)."""

    def __init__(self, width: int, *, operations, **place):
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm1, self.norm2 = (operations.LayerNorm(width, **place) for _ in range(2))
        self.qkv, self.out = (
            operations.Linear(width, 3 * width, **place),
            operations.Linear(width, width, **place),
        )
        self.wide, self.narrow = (
            operations.Linear(width, 2 * width, **place),
            operations.Linear(2 * width, width, **place),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads
        )
        x = x + self.out(attend(q, k, v))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class TinyTextEncoder(nn.Module):
    """`forward`: ids (b, n) -> context (b, n, c). Padding is a learned embedding that is attended to.

    `vocabulary` and `tokens`, the most that it reads, are those that `tokenize` was given.
    """

    def __init__(
        self, width: int = 128, layers: int = 0, *, vocabulary: Sequence[str] = VOCABULARY,
        tokens: int = TOKENS, operations=torch.nn, device=None, dtype=None,
    ):  # fmt: skip
        super().__init__()
        place = {"device": device, "dtype": dtype}
        self.words = operations.Embedding(len(vocabulary) + 2, width, **place)
        self.places = operations.Embedding(tokens, width, **place)
        self.layers = nn.ModuleList(TextLayer(width, operations=operations, **place) for _ in range(layers))
        if layers:
            self.norm = operations.LayerNorm(width, **place)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) if self.layers else x

    def encode(self, texts: list[str]) -> Tensor:
        """Context (b, n, c) of prompts; the empty prompt is all padding."""
        return self(tokenize(texts).to(next(self.parameters()).device))


def read_layout(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Width and number of layers of the encoder with these weights."""
    layers = [int(name.split(".")[1]) for name in state if name.startswith("layers.")]
    return state["words.weight"].shape[1], 1 + max(layers, default=-1)


def tokenize(
    texts: list[str], vocabulary: Sequence[str] = VOCABULARY, tokens: int = TOKENS
) -> Tensor:
    """Ids (b, n) int64, right-padded to n = `tokens`. Unknown words share one id: see `explain_unknown`."""
    numbers = {word: i + 2 for i, word in enumerate(vocabulary)}
    rows = torch.full((len(texts), tokens), PAD, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        words = normalize_words(text)[:tokens]
        row[: len(words)] = torch.tensor([numbers.get(word, UNKNOWN) for word in words], dtype=torch.int64)
    return rows


def explain_unknown(text: str) -> list[tuple[str, str | None]]:
    """Words of a prompt outside the vocabulary, in any script, each with the nearest known word, or None."""
    text, unread = translate_chinese(text)
    unknown = [word for word in split_any_script(text) if SYNONYMS.get(word, word) not in VOCABULARY]
    return [(word, find_nearest(word)) for word in dict.fromkeys([*unknown, *unread])]


def split_any_script(text: str) -> list[str]:
    """Lower-case runs of letters, digits and pictorial signs, such as emoji; what a word is, is up to the
    script.
    """
    signs = [char if _is_word_sign(char) else " " for char in text.lower()]
    return "".join(signs).split()


def _is_word_sign(char: str) -> bool:
    kind = unicodedata.category(char)
    return kind[0] in "LMN" or kind == "So"


def find_nearest(word: str) -> str | None:
    """The nearest word of the vocabulary, synonyms included, accents left out; None if none is near."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", word) if not unicodedata.combining(char))
    near = difflib.get_close_matches(plain, [*VOCABULARY, *SYNONYMS], 1, 0.5)
    return SYNONYMS.get(near[0], near[0]) if near else None


def dropped_words(text: str) -> list[str]:
    """Words beyond the encoder's length, which the model does not see."""
    return normalize_words(text)[TOKENS:]


def explain_prompt(text: str) -> str | None:
    """Sentences about a translated prompt, and words that the encoder does not know or truncates; None if
    there is nothing to say.
    """
    sentences = []
    if has_chinese(text) and (english := translate_chinese(text)[0]):
        sentences.append(f"The tiny model reads '{english}'.")
    unknown = explain_unknown(text)
    if unknown:
        named = ", ".join(f"'{word}' (nearest: '{near}')" if near else f"'{word}'" for word, near in unknown)
        sentences.append(f"The tiny model does not know {named}; it knows {', '.join(VOCABULARY)}.")
    if unknown and not normalize_words(text):
        sentences.append("It reads the prompt as an empty one.")
    beyond = dropped_words(text)
    if beyond:
        sentences.append(f"The tiny model reads {TOKENS} words; it did not see '{' '.join(beyond)}'.")
    return " ".join(sentences) or None
