"""Core's networks that can be coupled: paths of their self-attention layers and the LoRA names of these."""

from __future__ import annotations

import comfy.latent_formats
import comfy.ldm.modules.diffusionmodules.openaimodel as unets
import comfy.ldm.pixart.pixartms as pixart
import comfy.model_base
import comfy.utils
from torch import nn

from ....models.intrinsic_ldm.layers import Layer
from ....models.intrinsic_ldm.lora import Projection

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
SD1_PROMPT = 768  # channels of SD1's text embeddings
BASES = "SD1.5, SD2.1, SDXL or PixArt"


class Base:
    """Family, latent channels and self-attention layers of a MODEL's network, read from its modules."""

    def __init__(self, patcher):
        """Raise ValueError, naming the model, if its network is not a supported base."""
        model = patcher.model
        network = getattr(model, "diffusion_model", None)
        self.name = (
            model.model_config.__class__.__name__ if hasattr(model, "model_config") else type(model).__name__
        )
        if type(network) not in (unets.UNetModel, pixart.PixArtMS):
            raise ValueError(
                f"Expected a {BASES} model, on which intrinsics are co-generated, got {self.name}. Load one "
                "of these."
            )
        self.channels = model.latent_format.latent_channels
        if model.concat_keys or network.in_channels != self.channels:
            raise ValueError(
                f"Expected a base model that takes a latent alone, got an inpainting or editing {self.name}. "
                "Load the base model itself."
            )
        self.is_unet = isinstance(network, unets.UNetModel)
        self.layers: list[Layer] = (
            unet_layers(network, model.model_config.unet_config) if self.is_unet else pixart_layers(network)
        )
        self.family = find_base_name(model, self.is_unet, self.name)

    def projections(self, network: nn.Module) -> dict[str, Projection]:
        """Every projection that an intrinsic LoRA may change, by its module path in diffusers."""
        projections = {}
        for layer in self.layers:
            for name in PROJECTIONS:
                path, columns = self.find(layer, name)
                linear = network.get_submodule(path)
                outputs = linear.out_features // 3 if columns is not None else linear.out_features
                projections[f"{layer.name}.{name}"] = Projection(
                    linear.in_features, outputs, aliases=() if columns is not None else (path,)
                )
        return projections

    def find(self, layer: Layer, name: str) -> tuple[str, int | None]:
        """The module path of a projection, and its third of the output if q, k and v are one fused module."""
        if self.is_unet:
            return f"{layer.key[0]}.attn1.{name}", None
        attn = f"blocks.{layer.key[0]}.attn"
        return (f"{attn}.proj", None) if name == "to_out.0" else (f"{attn}.qkv", PROJECTIONS.index(name))


def find_base_name(model, is_unet: bool, name: str) -> str:
    """The base's family: a name of the trainer's bases, "sd15" or "pixart_sigma".

    SD1.5 and SD2.1 have layers of the same names and widths but different text encoders; PixArt-Sigma has
    PixArt's layers but SDXL's latents. Raises ValueError for refiners and image-conditioned variants.
    """
    if not is_unet:
        return "pixart_sigma" if isinstance(model.latent_format, comfy.latent_formats.SDXL) else "pixart"
    if isinstance(model, comfy.model_base.SDXL):
        return "sdxl"
    config = model.model_config.unet_config
    if config.get("adm_in_channels") is not None:  # a pooled vector condition, which plain SD models lack
        raise ValueError(
            f"Expected {BASES}, got {name}, a refiner or an image-conditioned model. Load the base model "
            "itself."
        )
    return "sd15" if config.get("context_dim") == SD1_PROMPT else "sd21"


def unet_layers(network: unets.UNetModel, config: dict) -> list[Layer]:
    """The UNet's self-attention layers, in the order of execution.

    `key` is the transformer block's module path, then core's key of its attention replacement: input,
    middle or output; block number; index within the block.
    """
    names = {value: key for key, value in comfy.utils.unet_to_diffusers(config).items()}
    levels, sizes = len(network.channel_mult), list(network.num_res_blocks)
    stages = {("middle", 0): levels + 1}
    number = 1  # input block 0 is the first convolution
    for level, size in enumerate(sizes):
        stages |= {("input", number + index): level + 1 for index in range(size)}
        number += size + 1  # every level but the last ends with a downsampling block
    number = 0
    for level, size in enumerate(reversed(sizes)):
        stages |= {("output", number + index): levels + 2 + level for index in range(size + 1)}
        number += size + 1
    blocks = [("input", index, block) for index, block in enumerate(network.input_blocks)]
    blocks += [("middle", 0, network.middle_block)]
    blocks += [("output", index, block) for index, block in enumerate(network.output_blocks)]
    layers: list[Layer] = []
    for kind, index, block in blocks:
        for position, module in enumerate(block):
            for inner in range(len(getattr(module, "transformer_blocks", ()))):
                home = "middle_block" if kind == "middle" else f"{kind}_blocks.{index}"
                path = f"{home}.{position}.transformer_blocks.{inner}"
                name = names[f"{path}.attn1.to_q.weight"].removesuffix(".to_q.weight")
                layers.append(Layer(name, (path, kind, index, inner), stages[kind, index], len(layers)))
    return layers


def pixart_layers(network: pixart.PixArtMS) -> list[Layer]:
    """PixArt's self-attention layers; `key` is the block number."""
    if any(block.attn.sr_ratio > 1 for block in network.blocks):
        raise ValueError(
            "Expected a PixArt with as many keys as queries, got one with compressed keys (Sigma 2K). Load "
            "the model for 1024 pixels or less."
        )
    return [
        Layer(f"transformer_blocks.{index}.attn1", (index,), index, index)
        for index in range(len(network.blocks))
    ]
