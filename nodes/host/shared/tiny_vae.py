"""The tiny image codec as a core VAE, so that VAEEncode, VAEDecode and their tiled forms take it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor

from ....models.tiny.codec import STRIDE, TinyCodec

BYTES_PER_PIXEL = 600  # measured: the widest activations of the codec, in float32


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """Without core's warning of a VAE without weights: they follow."""

    def keep(record: logging.LogRecord) -> bool:
        return "No VAE weights" not in record.getMessage()

    logging.root.addFilter(keep)
    try:
        yield
    finally:
        logging.root.removeFilter(keep)


class TinyVAE(comfy.sd.VAE):
    """Core's encode, decode and tiling around our codec; core's constructor only supports its own
    architectures.
    """

    def __init__(self, state: dict[str, Tensor]):
        with _without_warning():
            super().__init__(sd={})  # sets core's own values, and returns before it makes a network
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
        """What differs from core's own values, and what its constructor sets with a network."""
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.vae_dtype = torch.float32
        self.working_dtypes = [torch.float32]
        self.upscale_ratio = self.downscale_ratio = STRIDE
        self.memory_used_encode = lambda shape, dtype: BYTES_PER_PIXEL * shape[2] * shape[3]
        self.memory_used_decode = lambda shape, dtype: BYTES_PER_PIXEL * shape[2] * shape[3] * STRIDE**2
