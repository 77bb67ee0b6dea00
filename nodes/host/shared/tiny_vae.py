"""The tiny image codec as a core VAE, so that VAEEncode, VAEDecode and their tiled forms take it."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor

from ....models.tiny.codec import STRIDE, TinyCodec

BYTES_PER_PIXEL = 600  # measured: the widest activations of the codec, in float32


class TinyVAE(comfy.sd.VAE):
    """Core's encode, decode and tiling around our codec; core's constructor only supports its own
    architectures.
    """

    def __init__(self, state: dict[str, Tensor]):
        self._describe()
        self.first_stage_model = TinyCodec(
            operations=comfy.ops.disable_weight_init, dtype=torch.float32
        ).train(False)
        self.first_stage_model.requires_grad_(False)
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        offload = comfy.model_management.vae_offload_device()
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=offload
        )
        self.first_stage_model.load_state_dict(state, strict=True, assign=self.patcher.is_dynamic())
        self.latent_channels = self.first_stage_model.config.latent_channels
        self.model_size()

    def _describe(self) -> None:
        """Every attribute that core's constructor sets; a test compares the two lists."""
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.vae_dtype = torch.float32
        self.working_dtypes = [torch.float32]
        self.upscale_ratio = self.downscale_ratio = STRIDE
        self.latent_dim, self.output_channels = 2, 3
        self.memory_used_encode = lambda shape, dtype: BYTES_PER_PIXEL * shape[2] * shape[3]
        self.memory_used_decode = lambda shape, dtype: BYTES_PER_PIXEL * shape[2] * shape[3] * STRIDE**2
        self.process_input = lambda image: image * 2 - 1
        self.process_output = lambda image: image.add_(1).mul_(0.5).clamp_(0, 1)
        self.crop_input = True
        self.disable_offload = self.not_video = self.handles_tiling = False
        self.size = self.pad_channel_value = self.extra_1d_channel = self.format_encoded = None
        self.downscale_index_formula = self.upscale_index_formula = None
        self.audio_sample_rate = 44100
