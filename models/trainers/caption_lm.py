"""A small language model over the captions of a dataset folder: the MLLM of the tiny SpatialFusion.

It is a Qwen2 of transformers on the tiny text encoder's words, trained to predict the next word of captions.
Its attention and its tensor names are those of ComfyUI's language models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..core.losses import sum_terms
from ..core.training.data import read_manifest
from ..core.training.loop import Batch, Task
from ..core.training.recipe import Recipe
from ..core.training.settings import check_settings, read_settings
from ..spatial_fusion.config import SpatialTransformerConfig, find_transformer_preset
from ..tiny.text import PAD, TOKENS, tokenize
from ..tiny.vocabulary import VOCABULARY

FOLDER = "mllm"  # in the output folder: the language model as transformers saves it
INIT_STD = 0.02


@dataclass(frozen=True)
class CaptionRequest:
    """The `data` part of a recipe."""

    folder: str  # a dataset folder, of which the captions alone are read


class CaptionModel(nn.Module):
    """The decoder, whose embedding's own matrix is the language head."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (b, s, words) of the word after each."""
        hidden = self.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden @ self.decoder.embed_tokens.weight.T


class Captions(torch.utils.data.Dataset):
    """ids (s,) of each caption of a folder, padded on the right."""

    def __init__(self, folder: str):
        texts: list[str] = []
        for entry in read_manifest(Path(folder))[0]:
            texts += [text for text in entry.get("captions") or [entry["caption"]] if text.strip()]
        if not texts:
            raise ValueError(
                f"Expected captions in {folder}, got none. Export the dataset with its captions."
            )
        self.ids = tokenize(texts)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"ids": self.ids[index]}


def build_caption_lm(recipe: Recipe) -> Task:
    """The Task of the system `caption_lm`, of the sizes that the preset's spatial transformer expects."""
    request = read_settings(CaptionRequest, {"folder": ""} | recipe.data, "recipe's data")
    check_settings(recipe.model, {}, "recipe's model")
    check_settings(recipe.loss, {}, "recipe's loss")
    config = find_transformer_preset(recipe.preset)
    decoder = make_decoder(config)
    init_decoder(decoder, Generator().manual_seed(recipe.seed))
    return Task(
        model=CaptionModel(decoder), loss=caption_loss, dataset=Captions(request.folder),
        export=partial(export_caption_lm, config=config),
    )  # fmt: skip


def make_decoder(config: SpatialTransformerConfig) -> nn.Module:
    """A Qwen2 over the tiny words, as wide and deep as a spatial transformer's MLLM."""
    import transformers

    return transformers.Qwen2Model(
        transformers.Qwen2Config(
            vocab_size=len(VOCABULARY) + 2, hidden_size=config.mllm_width,
            intermediate_size=2 * config.mllm_width, num_hidden_layers=config.mllm_layers,
            num_attention_heads=max(1, config.mllm_width // config.head_dim), head_dim=config.head_dim,
            num_key_value_heads=config.kv_heads, max_position_embeddings=TOKENS,
            rms_norm_eps=config.norm_eps, pad_token_id=PAD, bos_token_id=None, eos_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    )  # fmt: skip


def init_decoder(decoder: nn.Module, generator: Generator) -> None:
    """Normal initialization, norms at 1, biases at 0."""
    for name, parameter in decoder.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0, INIT_STD, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name else 0.0)


def caption_loss(model: nn.Module, batch: Batch, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of each word after the first, and of the end, which is the first padding."""
    ids = batch["ids"]
    mask = ids != PAD
    logits = model(ids, mask.long())
    after = mask[:, :-1]  # the words that another one, or the end, follows
    return sum_terms({"word": F.cross_entropy(logits[:, :-1][after].float(), ids[:, 1:][after])})


def export_caption_lm(
    folder: Path, state: Mapping[str, Tensor], *, config: SpatialTransformerConfig
) -> None:
    """Write the averaged language model as transformers reads it."""
    decoder = make_decoder(config)
    prefix = "decoder."
    decoder.load_state_dict({name.removeprefix(prefix): value for name, value in state.items()})
    decoder.save_pretrained(folder / FOLDER)


def tokenize_words(texts: Sequence[str]) -> list[list[int]]:
    """The tiny words' token ids of each text, without padding."""
    rows: list[Any] = tokenize(list(texts)).tolist()
    return [[token for token in row if token != PAD] for row in rows]
