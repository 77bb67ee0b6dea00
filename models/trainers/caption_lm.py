"""A small language model over captions of the world or of a folder: the MLLM of the tiny SpatialFusion.

It is a Qwen2 of transformers on the tiny text encoder's words, trained to predict the next word of captions.
Its attention and its tensor names are those of ComfyUI's language models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..core.losses import sum_terms
from ..core.training.data import read_manifest
from ..core.training.loop import Batch, Task
from ..core.training.recipe import Recipe
from ..core.training.settings import check_settings, read_settings
from ..spatial_fusion.config import SpatialTransformerConfig, find_transformer_preset
from ..spatial_fusion.language import (
    LANGUAGE_FILE,
    make_language,
    save_language,
    size_language,
)
from ..tiny.text import PAD, tokenize
from ..world.captions import caption, mirror_caption
from ..world.scene import Scene, sample_scenes

FOLDER = "mllm"  # in the output folder: the language model as transformers saves it
INIT_STD = 0.02


@dataclass(frozen=True)
class CaptionRequest:
    """The `data` part of a recipe: a dataset folder, or scenes of the world, which need no rendering."""

    folder: str = ""  # of which the captions alone are read
    scenes: int = 0
    captions: int = 4  # of each scene, and as many of its mirror image
    seed: int = 0  # of the scenes

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.scenes) or self.scenes < 0 or self.captions < 1:
            raise ValueError(
                f"Expected either a folder or scenes, with captions of at least 1, in the recipe's data, got "
                f"{self}. Correct the recipe."
            )


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
    """ids (s,) of each text, padded on the right."""

    def __init__(self, texts: Sequence[str]):
        self.ids = tokenize(list(texts))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"ids": self.ids[index]}


def build_caption_lm(recipe: Recipe) -> Task:
    """The Task of the system `caption_lm`, of the sizes that the preset's spatial transformer expects."""
    request = read_settings(CaptionRequest, recipe.data, "recipe's data")
    check_settings(recipe.model, {}, "recipe's model")
    check_settings(recipe.loss, {}, "recipe's loss")
    config = find_transformer_preset(recipe.preset)
    decoder = make_decoder(config)
    init_decoder(decoder, Generator().manual_seed(recipe.seed))
    return Task(
        model=CaptionModel(decoder), loss=caption_loss, dataset=Captions(collect_captions(request)),
        export=partial(export_caption_lm, config=config),
    )  # fmt: skip


def collect_captions(request: CaptionRequest) -> list[str]:
    """The captions of a recipe's data; ValueError if its folder has none."""
    if not request.folder:
        scenes = sample_scenes(request.seed, request.scenes, split="train")
        rows = [scene_captions(scene, request.captions) for scene in scenes]
        return [text for row in rows for text in row] + [mirror_caption(text) for row in rows for text in row]
    texts: list[str] = []
    for entry in read_manifest(Path(request.folder))[0]:
        texts += [text for text in entry.get("captions") or [entry["caption"]] if text.strip()]
    if not texts:
        raise ValueError(
            f"Expected captions in {request.folder}, got none. Export the dataset with its captions."
        )
    return texts


def scene_captions(scene: Scene, count: int) -> list[str]:
    """`count` captions of a scene, the same ones at every call."""
    rng = random.Random(f"captions/{scene.seed}")
    return [caption(scene, rng) for _ in range(count)]


def make_decoder(config: SpatialTransformerConfig) -> nn.Module:
    """A Qwen2 over the tiny words, as wide and deep as a spatial transformer's MLLM."""
    return make_language(size_language(config))


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
    ids = ids[:, : int((ids != PAD).sum(dim=1).max()) + 1]  # no further than the end of the longest
    mask = ids != PAD
    logits = model(ids, mask.long())
    after = mask[:, :-1]  # the words that another one, or the end, follows
    return sum_terms({"word": F.cross_entropy(logits[:, :-1][after].float(), ids[:, 1:][after])})


def export_caption_lm(
    folder: Path, state: Mapping[str, Tensor], *, config: SpatialTransformerConfig
) -> None:
    """Write the averaged language model as transformers reads it, and as the node does."""
    decoder, prefix = make_decoder(config), "decoder."
    decoder.load_state_dict({name.removeprefix(prefix): value for name, value in state.items()})
    decoder.save_pretrained(folder / FOLDER)
    save_language(folder / LANGUAGE_FILE, size_language(config), decoder.state_dict())
