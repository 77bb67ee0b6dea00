"""The tiny latent diffusion model as core's MODEL, CLIP and VAE.

The UNet, the autoencoder and the text encoder's wrapper are core's own classes in a smaller configuration.
"""

from __future__ import annotations

import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor

from ....models.core.weights.files import check_fit
from ....models.intrinsic_ldm.tiny import BASE_FILE, VAE, TinyBase, load_base, unet_for_core
from ....models.intrinsic_ldm.weights import to_core_names
from ....models.tiny.codec_colors import fit_colors
from ..shared.hosting import host_model, set_precision
from ..shared.tiny_clip import tiny_clip
from .vae import scale_memory


class TinyLatent(comfy.latent_formats.LatentFormat):
    """Latent format whose previews are a linear map to RGB, fitted on the autoencoder."""

    latent_channels = VAE.latent_channels


class TinyDiffusion(comfy.supported_models.SD20):
    """SD2.1 in a smaller configuration, so that core's sampling, ControlNet, LoRA and patches apply."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": unet_for_core()["num_head_channels"]}
    latent_format = TinyLatent

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self):
        return False  # core infers it from the input channels, assuming latents of 4


class TinyAutoencoder(comfy.sd.VAE):
    """Core's VAE with its tiling, for the tiny model's latent channels."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__(sd=dict(state), config={"params": VAE.for_core(3)}, dtype=torch.float32)
        self.latent_channels = VAE.latent_channels
        scale_memory(self, VAE)


class LatentEncoder:
    """The autoencoder as `fit_colors` expects it: images to scaled latent means.

    Core's VAE returns unscaled means, which the latent format scales.
    """

    def __init__(self, network: torch.nn.Module, scale: float):
        self.network, self.scale = network, scale

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images) * self.scale


def load_tiny_diffusion() -> tuple:
    """(MODEL, CLIP, VAE) of the weights in this repository."""
    base = load_base(BASE_FILE)
    return tiny_model(base), tiny_clip(dict(base.text)), TinyAutoencoder(to_core_names(base.vae))


def load_tiny_unet(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The model alone: core's factory for a second copy on another device."""
    return tiny_model(load_base(BASE_FILE), disable_dynamic)


def tiny_model(base: TinyBase, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """A core MODEL of the UNet, with RGB factors for latent previews."""
    config = TinyDiffusion(unet_for_core())
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    state = {names.get(name, name): value for name, value in base.unet.items()}
    set_precision(config, state, comfy.model_management.get_torch_device())
    config.latent_format.scale_factor = base.vae_scale
    factors, bias = fit_colors(encoder_of(base), stride=VAE.stride)
    config.latent_format.latent_rgb_factors = factors.tolist()
    config.latent_format.latent_rgb_factors_bias = bias.tolist()
    model = config.get_model(state)
    own, loaded = (
        {name: tuple(value.shape) for name, value in tensors.items()}
        for tensors in (model.diffusion_model.state_dict(), state)
    )
    check_fit(own, loaded, f"{BASE_FILE}, the tiny UNet,")
    patcher = host_model(model, state, disable_dynamic)
    patcher.cached_patcher_init = (load_tiny_unet, ())
    return patcher


@torch.no_grad()
def encoder_of(base: TinyBase) -> LatentEncoder:
    network = comfy.ldm.models.autoencoder.AutoencoderKL(**VAE.for_core(3))
    network.load_state_dict(to_core_names(base.vae))
    return LatentEncoder(network.train(False), base.vae_scale)
