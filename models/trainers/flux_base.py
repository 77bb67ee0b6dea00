"""FLUX.1 of diffusers as the frozen base of a depth adapter: rectified flow, packed latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ..core.weights.files import check_finite
from ..intrinsic_ldm.backbones import (
    explain_parts,
    import_diffusers,
    load_image_vae,
    read_component_config,
)

CONDITIONS = ("context", "pooled")
GUIDANCE = 1.0  # of the distilled guidance embedding in training: the plain velocity
PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")


class FluxBase:
    """The network at noise levels t in [0, 1): z_t = (1 - t) z_0 + t noise, target noise - z_0."""

    conditions, references = CONDITIONS, ()

    def __init__(self, network: nn.Module):
        self.network, self.channels = network, network.config.in_channels // 4

    def add_noise(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        t = rearrange(level, "b -> b 1 1 1")
        return (1 - t) * x0 + t * noise

    def target(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return noise - x0

    def predict(self, x: Tensor, level: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
        """The velocity (b, c, h, w) in float32 for latents of even sides."""
        dtype, (height, width) = self.network.dtype, x.shape[2:]
        if height % 2 or width % 2:
            raise ValueError(
                f"Expected latents of even sides for FLUX, got {height} x {width}. Set data.size to "
                "multiples of 16 pixels."
            )
        guided = self.network.config.guidance_embeds
        out = self.network(
            hidden_states=rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2).to(dtype),
            timestep=level.to(dtype),
            guidance=torch.full_like(level, GUIDANCE) if guided else None,
            pooled_projections=prompt["pooled"].to(dtype),
            encoder_hidden_states=prompt["context"].to(dtype),
            txt_ids=torch.zeros(prompt["context"].shape[1], 3, device=x.device, dtype=dtype),
            img_ids=image_ids(height // 2, width // 2).to(x.device, dtype),
            return_dict=False,
        )[0]
        return rearrange(
            out.float(), "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, p=2, q=2
        )  # fmt: skip


def image_ids(rows: int, columns: int) -> Tensor:
    """Positions (n, 3) of the image tokens: 0, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)
    return rearrange(ids, "h w axes -> (h w) axes")


class FluxPrompts:
    """FLUX's two text encoders, as a diffusers pipeline runs them."""

    def __init__(self, pipeline):
        self.pipeline, self.device = pipeline, torch.device("cpu")

    def to(self, device: torch.device) -> FluxPrompts:
        self.pipeline.to(device)
        self.device = device
        return self

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """context (b, n, c) of T5, pooled (b, c) of CLIP."""
        context, pooled, _ = self.pipeline.encode_prompt(prompts, None, device=self.device)
        return {"context": context, "pooled": pooled}


def load_flux(folder: Path, dtype: torch.dtype) -> FluxBase:
    """The network of a FLUX.1 pipeline in diffusers' layout; ValueError for another folder."""
    config = folder / "transformer" / "config.json"
    kind = read_component_config(config).get("_class_name") if config.is_file() else None
    if kind != "FluxTransformer2DModel":
        raise ValueError(
            f"Expected a FLUX.1 pipeline in diffusers' layout in {folder}, got {kind or 'no transformer'}. "
            "Name such a folder."
        )
    with explain_parts(folder):
        network = import_diffusers().FluxTransformer2DModel.from_pretrained(
            folder, subfolder="transformer", torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    check_finite(network.state_dict(), f"the base in {folder}")
    return FluxBase(network.train(False))


def load_flux_parts(folder: Path, dtype: torch.dtype) -> tuple[FluxPrompts, nn.Module]:
    """The text encoders, and the image autoencoder in float32."""
    with explain_parts(folder):
        pipeline = import_diffusers().FluxPipeline.from_pretrained(
            folder, transformer=None, vae=None, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    return FluxPrompts(pipeline), load_image_vae(folder)
