"""The tiny editor as core's MODEL, CLIP and VAE: core's own Flux class in a smaller configuration."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
from torch import Tensor

from ....models.core.weights.files import read_header, read_tensors
from ....models.spatial_diff.config import DEFAULTS
from ....models.spatial_diff.editor_files import (
    EDITOR_FILE,
    LORA_FILE,
    TEXT_FILE,
    load_text,
    read_editor_config,
)
from ....models.spatial_diff.flux import PRESETS
from ....models.spatial_diff.grammar import VOCABULARY, WORDS, explain_instruction, tokenize_instructions
from ....models.tiny.codec import STRIDE, CodecConfig
from ....models.tiny.codec_colors import fit_colors
from ....models.tiny.weights import CODEC_FILE, load_codec
from ..shared.hosting import host_model, set_precision
from ..shared.tiny_clip import Wording, tiny_clip
from ..shared.tiny_vae import TinyVAE


class TinyEditorLatent(comfy.latent_formats.LatentFormat):
    """Latents of the tiny codec, which normalizes them itself."""

    latent_channels = CodecConfig().latent_channels
    spacial_downscale_ratio = STRIDE


class TinyEditor(comfy.supported_models.Flux):
    """FLUX.1 in a smaller configuration, so that core's reference latents, sampling and patches apply."""

    latent_format = TinyEditorLatent
    sampling_settings = {"shift": DEFAULTS.mu}


def load_tiny_editor(lora_strength: float = 1.0) -> tuple:
    """(MODEL, CLIP, VAE) of the weights in this repository, the LoRA at this strength."""
    model = load_tiny_flux()
    if lora_strength:
        model = add_tiny_lora(model, lora_strength)
    text = load_text(
        TEXT_FILE, PRESETS["tiny"].context_in_dim, operations=comfy.ops.disable_weight_init
    ).state_dict()
    return model, tiny_clip(text, INSTRUCTIONS), TinyVAE(load_codec(CODEC_FILE).state_dict())


def load_tiny_flux(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The editor alone, with the codec's linear preview colors: core's factory for a second copy, too."""
    shape, prefix = read_editor_config(read_header(EDITOR_FILE), str(EDITOR_FILE))
    config = TinyEditor({"image_model": "flux", **shape.for_core()})
    stored = {name.removeprefix(prefix): value for name, value in read_tensors(EDITOR_FILE).items()}
    state = config.process_unet_state_dict(stored)  # core's names of the norms
    set_precision(config, state, comfy.model_management.get_torch_device())
    factors, bias = fit_colors(load_codec(CODEC_FILE))
    config.latent_format.latent_rgb_factors = factors.tolist()
    config.latent_format.latent_rgb_factors_bias = bias.tolist()
    patcher = host_model(config.get_model(state), as_small(state), disable_dynamic)
    patcher.cached_patcher_init = (load_tiny_flux, ())
    return patcher


def as_small(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32, in which core holds a small network: it may use them without a copy."""
    return {name: value.float() for name, value in state.items()}


def add_tiny_lora(model, strength: float) -> comfy.model_patcher.ModelPatcher:
    """A clone of the MODEL with the tiny LoRA, patched in as core's own LoRA loader does."""
    patched, _ = comfy.sd.load_lora_for_models(model, None, read_tensors(LORA_FILE), strength, 0.0)
    return patched


def tokenize_or_refuse(texts: list[str]) -> Tensor:
    """Ids (b, n). ValueError for an instruction that the editor cannot read; an empty one is read as such."""
    for text in texts:
        fault = explain_instruction(text) if text.strip() else None
        if fault:
            raise ValueError(fault)
    return tokenize_instructions(texts)


INSTRUCTIONS = Wording(VOCABULARY, WORDS, tokenize_or_refuse, explain=lambda text: None)
