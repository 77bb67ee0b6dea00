"""Training of the tiny image codec on images of the world."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..core.training.alignment import Aligner
from ..core.training.loop import Task
from ..core.training.recipe import Recipe
from ..core.training.settings import check_settings, read_settings
from ..tiny.codec import STRIDE, TinyCodec
from ..tiny.codec_training import CodecLoss, TrainedCodec, codec_loss
from ..tiny.weights import save_part
from ..world.export.dataset import DATA_KINDS, open_world
from .world_samples import CELL, CELL_CLASSES, IMAGE_KEYS, WorldImages


def build_codec(recipe: Recipe) -> Task:
    """The Task of the system `tiny_codec`."""
    check_settings(recipe.data, DATA_KINDS, "recipe's data")
    check_settings(recipe.model, {}, "recipe's model")
    settings = read_settings(CodecLoss, recipe.loss, "recipe's loss")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        codec = TinyCodec()
        aligner = Aligner(codec.config.latent_channels, CELL_CLASSES, STRIDE // CELL)
        model = TrainedCodec(codec, aligner)
    images = WorldImages(open_world(recipe.data, keys=IMAGE_KEYS, needs=(*IMAGE_KEYS, "objects")))
    return Task(model, partial(codec_loss, settings=settings), images, export=export_codec)


def export_codec(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the codec's averaged weights, without the alignment head."""
    codec = TinyCodec(device="meta")
    prefix = "codec."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    codec.load_state_dict(weights, assign=True)
    save_part(folder / "codec.safetensors", codec, "tiny image codec")
