"""Training of depth adapters on frozen bases: the tiny one, SD1.5, SD2.1, SDXL, PixArt, FLUX.1, OmniGen2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor

from ..core.layers.blocks import checkpointed, run_block
from ..core.training.data import FolderDataset
from ..core.training.loop import Task
from ..core.training.recipe import Recipe
from ..core.training.settings import check_settings, read_settings
from ..core.weights.files import read_tensors
from ..intrinsic_ldm import tiny
from ..intrinsic_ldm.backbones import (
    PromptEncoder,
    find_family,
    load_backbone,
    load_image_vae,
    load_parts,
    load_tiny,
)
from ..intrinsic_ldm.config import CONDITIONS, Family
from ..intrinsic_ldm.data.encode import list_base_files
from ..intrinsic_ldm.network import Backbone
from ..spatial_fusion.config import DepthAdapterConfig, find_preset
from ..spatial_fusion.omnigen2 import LORA_PATHS
from ..spatial_fusion.training import AdapterLoss, Denoiser, build_adapter_task
from .adapter_lora import add_lora
from .depth_latents import EMPTY, DepthLatentsRequest, encode_depth_latents
from .flux_base import FluxPrompts, load_flux, load_flux_parts
from .omnigen2_base import (
    OmniGen2Base,
    OmniGen2Prompts,
    check_prompts,
    list_omnigen2_encoder_files,
    load_omnigen2_base,
    load_omnigen2_prompts,
)

# the family of each preset that trains here, by its name in I-LDM
FAMILIES: Mapping[str, Family] = {
    "tiny": tiny.FAMILY, "sd15": "sd21", "sd21": "sd21", "sdxl": "sdxl", "pixart": "pixart",
    "pixart_sigma": "pixart",
}  # fmt: skip
FLUX, OMNIGEN2 = "flux", "omnigen2"
TRAINED = (*FAMILIES, FLUX, OMNIGEN2)  # presets


@dataclass(frozen=True)
class DepthAdapterSettings:
    """The `model` part of a recipe."""

    # folder of a pipeline in diffusers' layout, or ComfyUI's file of OmniGen2's network for data that is
    # encoded; "" for the preset "tiny", which ships
    base: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)  # changes to the preset
    weights: str = ""  # an adapter of this config to go on from
    precision: Literal["float32", "bfloat16"] = "float32"  # of the frozen base
    checkpointing: bool = False  # gradient checkpointing of the base's blocks
    lora_rank: int = 0  # of a LoRA that OmniGen2's attention trains beside the adapter; 0: it is frozen
    ship: Literal["float32", "float16", "bfloat16"] = "float16"  # precision of the files that a run writes

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(
                f"Expected a lora_rank of at least 0 in the recipe's model, got {self.lora_rank}. Correct it."
            )


class DdpmBase:
    """A base of the DDPM family: noise levels in [0, 1) are its timesteps."""

    references = ()

    def __init__(self, backbone: Backbone):
        self.backbone, self.network = backbone, backbone.network
        self.conditions, self.channels = CONDITIONS[backbone.family], backbone.channels

    def timestep(self, level: Tensor) -> Tensor:
        return (level * self.backbone.steps).long().clamp(max=self.backbone.steps - 1)

    def add_noise(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return self.backbone.add_noise(x0, noise, self.timestep(level))

    def target(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return self.backbone.target(x0, noise, self.timestep(level))

    def predict(self, x: Tensor, level: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
        return self.backbone.predict(x, self.timestep(level), prompt)


class BaseEncoder:
    """A base's image autoencoder and text encoders on one device."""

    def __init__(
        self, image: torch.nn.Module, prompts: PromptEncoder | FluxPrompts | OmniGen2Prompts, scale: float,
        shift: float, device,
    ):  # fmt: skip
        self.image, self.prompts = image.requires_grad_(False).to(device), prompts.to(device)
        self.scale, self.shift, self.device = scale, shift, device

    def encode_images(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] to latents (b, c, h, w) of unit standard deviation."""
        latent = self.image.encode(images.to(self.device)).latent_dist.mode()
        return (latent - self.shift) * self.scale

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """The prompt tensors of the base, a row per prompt."""
        return self.prompts.encode(prompts)


def build_depth_adapter(recipe: Recipe) -> Task:
    """The Task of the system `depth_adapter`. Samples that its data folder lacks are encoded first."""
    request = read_settings(DepthLatentsRequest, recipe.data, "recipe's data")
    settings = read_settings(DepthAdapterSettings, recipe.model, "recipe's model")
    loss = read_settings(AdapterLoss, recipe.loss, "recipe's loss")
    check_recipe(recipe, request, settings)
    changes = check_settings(settings.config, get_type_hints(DepthAdapterConfig), "recipe's model.config")
    config = replace(find_preset(recipe.preset), **changes)
    base = load_base_model(settings, recipe.preset, request.references)
    if request.source:
        encode_for(request, settings, recipe.preset)
    conditions = base.conditions
    keys = ("latent", "depth", *conditions, *base.references)
    dataset = FolderDataset(request.folder, keys=keys, needs=keys)
    if isinstance(base, OmniGen2Base):
        check_prompts(dataset[0], base)
    ship = getattr(torch, settings.ship)
    task = build_adapter_task(
        config=config, base=base, dataset=dataset, empty=read_empty(request, conditions, loss), settings=loss,
        seed=recipe.seed, weights=settings.weights, ship=ship,
    )  # fmt: skip
    if settings.lora_rank:
        rank, seed = settings.lora_rank, recipe.seed
        return add_lora(task, base.network, LORA_PATHS, rank=rank, seed=seed, dtype=ship)
    return task


def check_recipe(recipe: Recipe, request: DepthLatentsRequest, settings: DepthAdapterSettings) -> None:
    """ValueError for a preset that does not train here, or settings that it has no use for."""
    if recipe.preset not in TRAINED:
        raise ValueError(
            f"Expected preset of the recipe as one of {', '.join(TRAINED)}, got {recipe.preset!r}. "
            "Choose one of these."
        )
    if (request.references or settings.lora_rank) and recipe.preset != OMNIGEN2:
        raise ValueError(
            f"Expected no references in the recipe's data and no lora_rank in its model for {recipe.preset}, "
            f"got {request.references} and {settings.lora_rank}. Leave them out, or choose {OMNIGEN2}."
        )
    if settings.lora_rank and settings.precision == "bfloat16" and recipe.mixed_precision != "bf16":
        raise ValueError(
            "Expected mixed_precision bf16 of the recipe for a LoRA of a base in bfloat16, got "
            f"{recipe.mixed_precision!r}. Change it, or set precision of the recipe's model to float32."
        )


def load_base_model(settings: DepthAdapterSettings, preset: str, references: int = 0) -> Denoiser:
    """The frozen base of a recipe; ValueError if its folder holds another than the preset says."""
    dtype = getattr(torch, settings.precision)
    if (preset == "tiny") == bool(settings.base):
        raise ValueError(
            'Expected the folder of a diffusers pipeline as base of the recipe\'s model, and none for "tiny"'
            f", got {settings.base!r} for {preset!r}. Correct the recipe."
        )
    if preset == OMNIGEN2:
        run = checkpointed if settings.checkpointing else run_block
        return load_omnigen2_base(settings.base, dtype, references, run)
    if preset == FLUX:
        base = load_flux(Path(settings.base), dtype)
        if settings.checkpointing:
            base.network.enable_gradient_checkpointing()
        return base
    backbone = (
        load_tiny(dtype=dtype).backbone
        if preset == "tiny"
        else load_backbone(settings.base, FAMILIES[preset], dtype)
    )
    if preset != "tiny" and backbone.name != preset:
        raise ValueError(
            f"Expected a base {preset} in {settings.base}, as the recipe's preset says, got {backbone.name}. "
            "Change one of them."
        )
    if settings.checkpointing:
        backbone.network.enable_gradient_checkpointing()
    return DdpmBase(backbone)


def encode_for(request: DepthLatentsRequest, settings: DepthAdapterSettings, preset: str) -> None:
    """Encode the samples that the recipe's data folder lacks."""
    base, dtype = Path(settings.base), getattr(torch, settings.precision)

    def make(device: torch.device) -> BaseEncoder:
        if not settings.base:
            whole = load_tiny()
            return BaseEncoder(
                whole.autoencoder.module, whole.prompts, whole.autoencoder.scale, whole.autoencoder.shift,
                device,
            )  # fmt: skip
        if preset == OMNIGEN2:
            prompts, image = load_omnigen2_prompts(base, dtype), load_image_vae(base)
        else:
            prompts, image = load_flux_parts(base, dtype) if preset == FLUX else load_parts(base, dtype)
        return BaseEncoder(
            image, prompts, image.config.scaling_factor, image.config.shift_factor or 0.0, device
        )

    if not settings.base:
        files, name = [("tiny base", tiny.BASE_FILE)], tiny.NAME
    elif preset == OMNIGEN2:
        files, name = [*list_omnigen2_encoder_files(base)], preset
    else:
        files, name = [*list_base_files(base)], preset if preset == FLUX else find_family(base)
    encode_depth_latents(request, make, files, name)


def read_empty(
    request: DepthLatentsRequest, conditions: tuple[str, ...], loss: AdapterLoss
) -> dict[str, Tensor]:
    """The prompt tensors of "" if the loss uses caption dropout; ValueError if the folder lacks them."""
    if not loss.caption_dropout:
        return {}
    path = Path(request.folder) / EMPTY
    empty = read_tensors(path) if path.is_file() else {}
    lacks = [name for name in conditions if name not in empty]
    if lacks:
        raise ValueError(
            f"Expected {', '.join(conditions)} in {path}, which caption_dropout needs, got none for "
            f"{', '.join(lacks)}. Encode the folder again, or set caption_dropout to 0."
        )
    return {name: empty[name] for name in conditions}
