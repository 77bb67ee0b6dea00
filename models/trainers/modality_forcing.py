"""Training of the tiny Modality Forcing network, with its text encoder, on latents of the world's images."""

from __future__ import annotations

import torch

from ..core.training.loop import Task, find_device
from ..core.training.recipe import Recipe
from ..core.training.settings import check_settings
from ..modality_forcing.training import task as training_task
from ..tiny.text import TinyTextEncoder, tokenize
from ..tiny.weights import load_codec
from ..world.export.dataset import DATA_KINDS, open_world
from .world_samples import CELL_CLASSES, LATENT_KEYS, WorldLatents


def build_tiny_modality_forcing(recipe: Recipe) -> Task:
    """The Task of the system `tiny_modality_forcing`.

    `data.codec` names another codec than the shipped one.
    """
    check_settings(recipe.data, {**DATA_KINDS, "codec": str}, "recipe's data")
    codec = load_codec(recipe.data["codec"]) if recipe.data.get("codec") else load_codec()
    source = open_world(recipe.data, keys=LATENT_KEYS, needs=(*LATENT_KEYS, "objects"))
    dataset = WorldLatents(source, codec.train(False).to(find_device()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        text_encoder = TinyTextEncoder()
    return training_task.build(
        recipe,
        dataset=dataset,
        text_encoder=text_encoder,
        empty_tokens=tokenize([""])[0],
        classes=CELL_CLASSES,
    )
