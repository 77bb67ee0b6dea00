"""Training of the tiny I-LDM's base: its image autoencoder, then its UNet and text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.training.data import FolderDataset
from ..core.training.loop import Task, find_device
from ..core.training.recipe import Recipe, check_keys
from ..core.training.settings import check_settings
from ..intrinsic_ldm import tiny
from ..intrinsic_ldm.training import base as training_base
from ..tiny.text import TinyTextEncoder, tokenize
from ..world.export.dataset import DATA_KINDS, open_world
from .map_samples import MixedLatents, PairedLatents
from .world_samples import CELL, CELL_CLASSES, IMAGE_KEYS, LATENT_KEYS, WorldImages, WorldLatents

MAPS_SHARE = 0.25  # default fraction of maps among all samples: a few epochs of them per epoch of images


def build_tiny_image_vae(recipe: Recipe) -> Task:
    """The Task of the system `tiny_image_vae`: the autoencoder, on images of the world."""
    check_settings(recipe.data, DATA_KINDS, "recipe's data")
    images = WorldImages(open_world(recipe.data, keys=IMAGE_KEYS, needs=(*IMAGE_KEYS, "objects")))
    return training_base.build_image_vae(recipe, dataset=images, classes=CELL_CLASSES, cell=CELL)


def build_tiny_base(recipe: Recipe) -> Task:
    """The Task of the system `tiny_base`: UNet and text encoder together.

    `data.vae` is the folder of the autoencoder. `data.maps` is a folder of encoded maps, which are then
    `data.maps_share` of all samples. `data.pairs`, instead of the world and the maps, is a folder of images
    encoded with their maps.
    """
    kinds = {**DATA_KINDS, "vae": str, "maps": str, "maps_share": float, "pairs": str}
    check_settings(recipe.data, kinds, "recipe's data")
    folder = Path(recipe.data.get("vae", ""))
    # with pairs the autoencoder is only needed for the export, too late to find that it is missing
    vae = training_base.FrozenVae(folder)
    if recipe.data.get("pairs"):
        check_keys(recipe.data, ["pairs", "vae"], "recipe's data, as it names pairs,")
        latents = ("latent", "intrinsic_latent")
        dataset: Any = PairedLatents(FolderDataset(recipe.data["pairs"], keys=latents, needs=latents))
    else:
        dataset = open_latents(recipe.data, vae)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        text_encoder = TinyTextEncoder(tiny.TEXT_WIDTH, tiny.TEXT_LAYERS)
    return training_base.build_base(
        recipe,
        text_encoder=text_encoder,
        empty_tokens=tokenize([""])[0],
        dataset=dataset,
        classes=CELL_CLASSES,
        vae_folder=folder,
    )


def open_latents(data: Mapping[str, Any], vae: training_base.FrozenVae) -> WorldLatents | MixedLatents:
    """Latents of the world's images, mixed with those of maps if `data` names any."""
    check_keys(data, [*DATA_KINDS, "vae", "maps", "maps_share"], "recipe's data")
    source = open_world(data, keys=LATENT_KEYS, needs=(*LATENT_KEYS, "objects"))
    images = WorldLatents(source, vae.to(find_device()), depth=False)
    if not data.get("maps"):
        return images
    maps = FolderDataset(data["maps"], keys=("intrinsic_latent",), needs=("intrinsic_latent",))
    return MixedLatents(images, maps, data.get("maps_share", MAPS_SHARE))
