"""Which recipe trains what: one builder per `system` of a recipe. Here, and only here, systems meet the world they train on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.training.alignment import Aligner
from ..core.training.data import FolderDataset
from ..core.training.loop import Builder, Task, find_device
from ..core.training.recipe import Recipe, check_keys
from ..core.training.settings import check_settings, read_settings
from ..intrinsic_ldm import tiny
from ..intrinsic_ldm.training import base as training_base
from ..intrinsic_ldm.training import lora as training_lora
from ..intrinsic_ldm.training import vae as training_vae
from ..modality_forcing.training import task as training_task
from ..tiny.codec import STRIDE, TinyCodec
from ..tiny.codec_training import CodecLoss, TrainedCodec, codec_loss
from ..tiny.text import TinyTextEncoder, tokenize
from ..tiny.weights import load_codec, save_part
from ..world.export.dataset import DATA_KINDS, open_world
from ..world.judges import predictor_task, scorer_task
from .world_samples import CELL, CELL_CLASSES, PicturesAndMaps, PicturesWithMaps, WorldLatents, WorldPictures

PICTURES, MAPS = ("image", "segmentation"), ("image", "depth", "segmentation")  # of a folder of the world
MAPS_SHARE = 0.25  # enough to be learnt, and a few rounds of a dataset's maps to one of its pictures


def build_codec(recipe: Recipe) -> Task:
    """The tiny image codec, on pictures of the world."""
    check_settings(recipe.data, DATA_KINDS, "recipe's data")
    check_settings(recipe.model, {}, "recipe's model")
    settings = read_settings(CodecLoss, recipe.loss, "recipe's loss")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        codec = TinyCodec()
        model = TrainedCodec(codec, Aligner(codec.config.latent_channels, CELL_CLASSES, STRIDE // CELL))
    pictures = WorldPictures(open_world(recipe.data, keys=PICTURES, needs=(*PICTURES, "objects")))
    return Task(model, partial(codec_loss, settings=settings), pictures, export=export_codec)


def export_codec(folder: Path, state: Mapping[str, Tensor]) -> None:
    codec = TinyCodec(device="meta")
    codec.load_state_dict({name.removeprefix("codec."): value for name, value in state.items() if name.startswith("codec.")}, assign=True)
    save_part(folder / "codec.safetensors", codec, "tiny image codec")


def build_tiny_image_vae(recipe: Recipe) -> Task:
    """The autoencoder of the tiny I-LDM's base, on pictures of the world."""
    check_settings(recipe.data, DATA_KINDS, "recipe's data")
    pictures = WorldPictures(open_world(recipe.data, keys=PICTURES, needs=(*PICTURES, "objects")))
    return training_base.build_image_vae(recipe, dataset=pictures, classes=CELL_CLASSES, cell=CELL)


def build_tiny_base(recipe: Recipe) -> Task:
    """The tiny I-LDM's base, UNet and text encoder together. `data.vae` is the folder of its autoencoder; `data.maps` one of encoded maps,
    which then are `data.maps_share` of what it learns from; `data.pairs`, in place of all that, one of pictures encoded with their maps."""
    more = {"vae": str, "maps": str, "maps_share": float, "pairs": str}
    check_settings(recipe.data, {**DATA_KINDS, **more}, "recipe's data")
    folder = Path(recipe.data.get("vae", ""))
    vae = training_base.FrozenVae(folder)  # pairs need it only when the run ends, which would be late to learn that there is none
    if recipe.data.get("pairs"):
        check_keys(recipe.data, ["pairs", "vae"], "recipe's data, as it names pairs,")
        latents = ("latent", "intrinsic_latent")
        dataset: Any = PicturesWithMaps(FolderDataset(recipe.data["pairs"], keys=latents, needs=latents))
    else:
        dataset = open_pictures(recipe.data, vae)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        text_encoder = TinyTextEncoder(tiny.TEXT_WIDTH, tiny.TEXT_LAYERS)
    given = {"text_encoder": text_encoder, "empty_tokens": tokenize([""])[0], "classes": CELL_CLASSES}
    return training_base.build_base(recipe, dataset=dataset, vae_folder=folder, **given)


def open_pictures(data: Mapping[str, Any], vae: training_base.FrozenVae) -> Any:
    """The world's pictures as latents, and among them those of maps where `data` names any."""
    check_keys(data, [*DATA_KINDS, "vae", "maps", "maps_share"], "recipe's data")
    source = open_world(data, keys=MAPS, needs=(*MAPS, "objects"))
    pictures = WorldLatents(source, vae.to(find_device()), depth=False)
    if not data.get("maps"):
        return pictures
    maps = FolderDataset(data["maps"], keys=("intrinsic_latent",), needs=("intrinsic_latent",))
    return PicturesAndMaps(pictures, maps, data.get("maps_share", MAPS_SHARE))


def build_tiny_modality_forcing(recipe: Recipe) -> Task:
    """Network and text encoder together, on latents of the world's pictures. `data.codec` names a codec other than the shipped one."""
    check_settings(recipe.data, {**DATA_KINDS, "codec": str}, "recipe's data")
    codec = load_codec(recipe.data["codec"]) if recipe.data.get("codec") else load_codec()
    dataset = WorldLatents(open_world(recipe.data, keys=MAPS, needs=(*MAPS, "objects")), codec.train(False).to(find_device()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        text_encoder = TinyTextEncoder()
    given = {"text_encoder": text_encoder, "empty_tokens": tokenize([""])[0], "classes": CELL_CLASSES}
    return training_task.build(recipe, dataset=dataset, **given)


BUILDERS: Mapping[str, Builder] = {
    "modality_forcing": training_task.build,
    "tiny_modality_forcing": build_tiny_modality_forcing,
    "tiny_codec": build_codec,
    "tiny_image_vae": build_tiny_image_vae,
    "tiny_base": build_tiny_base,
    "intrinsic_vae": training_vae.build,
    "intrinsic_lora": training_lora.build,
    "predictor": predictor_task.build,
    "scorer": scorer_task.build,
}
