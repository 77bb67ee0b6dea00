"""Stage 1 of SpatialFusion: a spatial transformer learns the depth of captions beside a frozen MLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from ..core.geometry.resize import resize_bicubic
from ..core.pictures import open_rgb
from ..core.training.data import FolderDataset
from ..core.training.data_files import check_name
from ..core.training.loop import Task
from ..core.training.recipe import Recipe
from ..core.training.settings import Size, check_settings, read_settings
from ..spatial_fusion.config import SpatialTransformerConfig, find_transformer_preset
from ..spatial_fusion.language import fill_language, read_language, tokenize_words
from ..spatial_fusion.mllm import check_mllm, find_text_model, read_semantic_state, read_sizes
from ..spatial_fusion.network import SpatialTransformer, plan_depth
from ..spatial_fusion.training import SpatialDepthLoss, build_spatial_task, init_spatial_weights
from ..spatial_fusion.weights import fill_from_vggt, load_spatial_transformer
from .caption_depth import WorldCaptionDepth

TINY_WORDS = "tiny"  # the tokenizer of the language model that `caption_lm` trains
# what a prompt is put into before the MLLM reads it, as the preset's generator was trained
TEMPLATES: Mapping[str, str] = {
    "omnigen2": "<|im_start|>system\nYou are a helpful assistant that generates high-quality images based on "
    "user instructions.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n",
    "tiny": "{}",
}


@dataclass(frozen=True)
class CaptionedDepthRequest:
    """The `data` part of a recipe: a dataset folder with depth and captions, or scenes of the world."""

    folder: str = ""
    size: Size | None = None  # pixels; None keeps the depth's own, of scenes the transformer's
    captions: int = 1  # per image, of the manifest's "captions"
    scenes: int = 0  # of the world, rendered when training starts, each also mirrored
    seed: int = 0  # of the scenes

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.scenes) or self.scenes < 0 or self.captions < 1:
            raise ValueError(
                "Expected either a folder or scenes, and captions of at least 1, in the recipe's data, got "
                f"{self}. Correct the recipe."
            )


@dataclass(frozen=True)
class SpatialTransformerSettings:
    """The `model` part of a recipe."""

    mllm: str  # folder of the language model, as transformers saves it, or the file that `caption_lm` writes
    tokenizer: str = ""  # folder of its tokenizer, or "tiny" for the tiny words; "": the same folder
    config: Mapping[str, Any] = field(default_factory=dict)  # changes to the preset
    vggt: str = ""  # a VGGT file that image encoder and depth head are taken from
    weights: str = ""  # a spatial transformer of this config to go on from
    precision: Literal["float32", "bfloat16"] = "float32"  # of the frozen language model
    # precision of the file that a run writes; int8: large matrices in eight bits, the rest in float16
    ship: Literal["float32", "float16", "bfloat16", "int8"] = "float16"


class CaptionedDepth(torch.utils.data.Dataset):
    """depth and mask (h, w); ids (k, s) and lengths (k,) of k captions' tokens, padded on the right.

    A line that names a `source_image` is an edit, whose captions are instructions. If there is one, every
    sample has source (H, W, 3) uint8, black without an edit, and is_edit.
    """

    def __init__(
        self, request: CaptionedDepthRequest, config: SpatialTransformerConfig, tokenize, template: str
    ):
        """`tokenize`: texts to lists of token ids."""
        self.config = config
        keys = {"keys": ("depth", "mask"), "needs": ("depth",)}
        self.source = FolderDataset(request.folder, size=request.size, **keys)
        entries = range(len(self.source))
        texts = [self.read_captions(i, request.captions) for i in entries]
        self.tokens = [tokenize([template.format(text) for text in row]) for row in texts]
        self.longest = max(len(ids) for row in self.tokens for ids in row)
        self.has_edits = any("source_image" in self.source.entry(i) for i in entries)
        lost = next((i for i in entries if not all(self.tokens[i])), None)
        if lost is not None:
            raise ValueError(
                f"{self.source.where(lost)}: Expected tokens of each caption, got none of one of "
                f"{texts[lost]}. Choose the language model's own tokenizer."
            )

    def read_captions(self, index: int, count: int) -> list[str]:
        """`count` captions of a sample, some twice if it has fewer; ValueError for an empty one."""
        entry = self.source.entry(index)
        found = list(entry.get("captions") or [entry["caption"]])
        if not all(isinstance(text, str) and text.strip() for text in found):
            raise ValueError(
                f"{self.source.where(index)}: Expected captions of at least one word, got {found}. Write "
                "what the image shows."
            )
        return [found[i % len(found)] for i in range(count)]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, rows = self.source[index], self.tokens[index]
        ids = torch.zeros(len(rows), self.longest, dtype=torch.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        if not sample["mask"].any():
            raise ValueError(
                f"{self.source.where(index)}: Expected a known depth pixel, got none. Leave the sample out."
            )
        lengths = torch.tensor([len(tokens) for tokens in rows])
        found = {"depth": sample["depth"], "mask": sample["mask"], "ids": ids, "lengths": lengths}
        return found | (self.read_source(index, sample["depth"]) if self.has_edits else {})

    def read_source(self, index: int, depth: Tensor) -> dict[str, Tensor]:
        """The source image of an edit, scaled to the grid of queries, or black."""
        sides = tuple(side * self.config.patch for side in plan_depth(self.config, tuple(depth.shape)).grid)
        name = self.source.entry(index).get("source_image")
        if name is None:
            return {"source": torch.zeros(*sides, 3, dtype=torch.uint8), "is_edit": torch.tensor(False)}
        check_name(name, "source_image", self.source.where(index))
        image = open_rgb(self.source.folder / name)[0]
        scaled = resize_bicubic(rearrange(image, "h w c -> 1 c h w").float() / 255, sides)
        source = rearrange((scaled[0] * 255).round().to(torch.uint8), "c h w -> h w c")
        return {"source": source, "is_edit": torch.tensor(True)}


def build_spatial_transformer(recipe: Recipe) -> Task:
    """The Task of the system `spatial_transformer`."""
    request = read_settings(CaptionedDepthRequest, recipe.data, "recipe's data")
    settings = read_settings(SpatialTransformerSettings, {"mllm": ""} | recipe.model, "recipe's model")
    loss = read_settings(SpatialDepthLoss, recipe.loss, "recipe's loss")
    preset = find_transformer_preset(recipe.preset)
    kinds = get_type_hints(SpatialTransformerConfig)
    changes = check_settings(settings.config, kinds, "recipe's model.config")
    network = start_transformer(replace(preset, **changes), settings, recipe.seed)
    mllm, tokenize = load_mllm(settings)
    decoder = find_text_model(mllm)
    check_mllm(network.config, read_sizes(decoder), settings.mllm)
    return build_spatial_task(
        network=network, mllm=decoder, read=partial(read_semantic_state, decoder, config=network.config),
        dataset=find_samples(request, network.config, tokenize, TEMPLATES[recipe.preset]),
        settings=loss, ship=settings.ship,
    )  # fmt: skip


def find_samples(
    request: CaptionedDepthRequest, config: SpatialTransformerConfig, tokenize, template: str
) -> torch.utils.data.Dataset:
    """The samples of a recipe's data, of a folder or of the world."""
    if request.folder:
        return CaptionedDepth(request, config, tokenize, template)
    side = config.queries_side * config.patch
    size = (side, side) if request.size is None else request.size
    return WorldCaptionDepth(
        scenes=request.scenes, captions=request.captions, seed=request.seed, tokenize=tokenize,
        size=(size, size) if isinstance(size, int) else tuple(size), template=template,
    )  # fmt: skip


def start_transformer(
    config: SpatialTransformerConfig, settings: SpatialTransformerSettings, seed: int
) -> SpatialTransformer:
    """From `weights`, else new, with parts of `vggt` if it is given; ValueError for another config."""
    if settings.weights:
        network = load_spatial_transformer(settings.weights).requires_grad_(True)
        if network.config != config:
            found = network.config.to_json()
            differ = [name for name, value in config.to_json().items() if found[name] != value]
            raise ValueError(
                f"Expected a spatial transformer of the recipe's config in {settings.weights}, got another "
                f"{', '.join(differ)}. Correct one of them."
            )
        return network
    network = SpatialTransformer(config)
    init_spatial_weights(network, Generator().manual_seed(seed))
    if settings.vggt:
        fill_from_vggt(network, settings.vggt)
    return network


def load_mllm(settings: SpatialTransformerSettings) -> tuple[nn.Module, Any]:
    """A language model of a folder, and its tokenizer as a function of texts; nothing is downloaded."""
    folder, names = Path(settings.mllm), Path(settings.tokenizer or settings.mllm)
    if settings.tokenizer == TINY_WORDS and folder.is_file():
        return fill_language(*read_language(folder)), tokenize_words
    import transformers

    files = [(folder, "config.json")]
    files += [] if settings.tokenizer == TINY_WORDS else [(names, "tokenizer_config.json")]
    for path, file in files:
        if not settings.mllm or not (path / file).is_file():
            raise ValueError(
                f"Expected the folder of a language model and its tokenizer, as transformers saves them, in "
                f"the recipe's model.mllm, got {str(path)!r} without {file}. Fetch it, such as OmniGen2's "
                "mllm, or correct the recipe."
            )
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=getattr(torch, settings.precision), local_files_only=True, use_safetensors=True
    )
    if settings.tokenizer == TINY_WORDS:
        return model.train(False), tokenize_words
    tokenizer = transformers.AutoTokenizer.from_pretrained(names, local_files_only=True)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    return model.train(False), tokenize

