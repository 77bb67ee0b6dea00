"""The tiny system: a latent diffusion model of SD2.1's architecture with its intrinsic VAE and LoRA.

It is small enough to train on a CPU and to ship. UNet and KL autoencoder are those of the large models, as
ComfyUI and diffusers both build them. Only the text encoder is ours, as there is no small CLIP: token and
position embeddings, and a few self-attention layers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.text_files import read_json_object
from ..core.weights.files import KIND as KIND_KEY
from ..core.weights.files import WeightsError, describe, read_header, read_tensors, write_tensors
from .config import VaeConfig

FAMILY = "sd21"  # of config.FAMILIES: a UNet conditioned on the prompt's context alone
NAME = "SpatialWeave tiny"
SIZE = 128  # pixels per side in training
TEXT_WIDTH, TEXT_LAYERS = 64, 2
VAE = VaeConfig(width=32, multiples=(1, 1, 1, 2), blocks=1, latent_channels=8, base_scale=1.0)
WIDTHS = (64, 128)  # channels of the UNet at 1/8 and 1/16 of the image size
HEADS = (2, 4)
BLOCKS = 1
# SD's noise schedule and SD2.1's prediction target, so that t means the same as in the paper's schedules
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
PREDICTION = "v_prediction"

TEXT_FILE = "text.safetensors"  # of a folder in diffusers' layout with a tiny text encoder
KIND = "tiny latent diffusion model"
COMPONENTS = ("unet", "vae", "text")  # key prefixes in the base's file
VAE_SCALE = "vae_scale"  # metadata key
BASE_FILE = Path(__file__).with_name("tiny_base.safetensors")
VAE_FILE = Path(__file__).with_name("tiny_intrinsic_vae.safetensors")
LORA_FILE = Path(__file__).with_name("tiny_intrinsic_lora.safetensors")


def unet_for_diffusers() -> dict:
    """Arguments of diffusers' UNet2DConditionModel."""
    levels = len(WIDTHS)
    return {
        "in_channels": VAE.latent_channels, "out_channels": VAE.latent_channels,
        "block_out_channels": WIDTHS, "layers_per_block": BLOCKS,
        "down_block_types": ("CrossAttnDownBlock2D",) * levels,
        "up_block_types": ("CrossAttnUpBlock2D",) * levels,
        "cross_attention_dim": TEXT_WIDTH, "attention_head_dim": HEADS, "use_linear_projection": True,
    }  # fmt: skip


def unet_for_core() -> dict:
    """Arguments of ComfyUI's UNetModel."""
    levels = len(WIDTHS)
    return {
        "image_size": 32, "in_channels": VAE.latent_channels, "out_channels": VAE.latent_channels,
        "model_channels": WIDTHS[0],
        "channel_mult": [width // WIDTHS[0] for width in WIDTHS], "num_res_blocks": [BLOCKS] * levels,
        "transformer_depth": [1] * BLOCKS * levels, "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * (BLOCKS + 1) * levels,
        "num_head_channels": WIDTHS[0] // HEADS[0], "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "context_dim": TEXT_WIDTH, "legacy": False, "adm_in_channels": None, "use_temporal_attention": False,
    }  # fmt: skip


@dataclass(frozen=True)
class TinyBase:
    """The shipped base: weights under diffusers' names, and the latent scaling factor of the autoencoder."""

    unet: Mapping[str, Tensor]
    vae: Mapping[str, Tensor]
    text: Mapping[str, Tensor]
    vae_scale: float


def save_base(path: str | os.PathLike, base: TinyBase) -> Path:
    """Write one file, in float16."""
    tensors = {
        f"{component}.{name}": value.half()
        for component in COMPONENTS
        for name, value in getattr(base, component).items()
    }
    return write_tensors(
        path, tensors, {VAE_SCALE: repr(float(base.vae_scale)), "licence": "Apache-2.0"}, kind=KIND
    )


def read_base_folder(folder: Path) -> TinyBase:
    """The base in a training run's output folder: diffusers' layout, with our text encoder's file."""
    file = "diffusion_pytorch_model.safetensors"
    unet, vae = read_tensors(folder / "unet" / file), read_tensors(folder / "vae" / file)
    config = folder / "vae" / "config.json"
    scale = _read_scale(read_json_object(config).get("scaling_factor"), f"scaling_factor in {config}")
    return TinyBase(unet, vae, read_tensors(folder / TEXT_FILE), scale)


def load_base(path: str | os.PathLike = BASE_FILE) -> TinyBase:
    """The inverse of `save_base`, in float32; WeightsError describes any other file."""
    header = read_header(path)
    if header.metadata.get(KIND_KEY) != KIND or VAE_SCALE not in header.metadata:
        raise WeightsError(
            f"Expected a {KIND} in {path}, got {describe(header)}. Use the file that ships with SpatialWeave."
        )
    tensors = read_tensors(path)
    components = {
        component: {
            name.removeprefix(f"{component}."): value.float()
            for name, value in tensors.items()
            if name.startswith(f"{component}.")
        }
        for component in COMPONENTS
    }
    scale = _read_scale(header.metadata[VAE_SCALE], f"{VAE_SCALE} in the metadata of {path}")
    return TinyBase(**components, vae_scale=scale)


def _read_scale(stated: Any, source: str) -> float:
    """A number above 0, from text or a number."""
    try:
        scale = float(stated)
    except (TypeError, ValueError):
        scale = math.nan
    if not 0 < scale < math.inf:
        raise WeightsError(f"Expected a number above 0 as {source}, got {stated!r}. Save the file again.")
    return scale
