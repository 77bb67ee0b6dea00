"""Core's networks that can be coupled: where their self-attention is, and by which names a LoRA knows it."""

from __future__ import annotations

import comfy.latent_formats
import comfy.ldm.modules.diffusionmodules.openaimodel as unets
import comfy.ldm.pixart.pixartms as pixart
import comfy.model_base
import comfy.utils
from torch import nn

from ....models.intrinsic_ldm.layers import Layer
from ....models.intrinsic_ldm.lora import Projection

PARTS = ("to_q", "to_k", "to_v", "to_out.0")
SD1_PROMPT = 768  # width of the prompts that SD1 reads
BASES = "SD1.5, SD2.1, SDXL or PixArt"


class Base:
    """What the node needs to know of a MODEL's network, read off its modules."""

    def __init__(self, patcher):
        """Raises ValueError for a model that has no such self-attention, with its name."""
        model = patcher.model
        network = getattr(model, "diffusion_model", None)
        self.name = model.model_config.__class__.__name__ if hasattr(model, "model_config") else type(model).__name__
        if type(network) not in (unets.UNetModel, pixart.PixArtMS):
            raise ValueError(f"A {self.name} model arrived, but intrinsics are co-generated on {BASES}: load one of these.")
        self.channels = model.latent_format.latent_channels
        if model.concat_keys or network.in_channels != self.channels:
            raise ValueError(f"An inpainting or editing {self.name} arrived, which reads a picture beside its latent: load the plain base.")
        self.is_unet = isinstance(network, unets.UNetModel)
        self.layers: list[Layer] = unet_layers(network, model.model_config.unet_config) if self.is_unet else pixart_layers(network)
        self.family = find_family(model, self.is_unet, self.name)

    def projections(self, network: nn.Module) -> dict[str, Projection]:
        """Every projection that an intrinsic LoRA may change, by diffusers' path."""
        found = {}
        for layer in self.layers:
            for part in PARTS:
                path, columns = self.find(layer, part)
                linear = network.get_submodule(path)
                outputs = linear.out_features // 3 if columns is not None else linear.out_features
                found[f"{layer.name}.{part}"] = Projection(linear.in_features, outputs, aliases=() if columns is not None else (path,))
        return found

    def find(self, layer: Layer, part: str) -> tuple[str, int | None]:
        """The module of a projection, and which third of its output it is where q, k and v are one module."""
        if self.is_unet:
            return f"{layer.place[0]}.attn1.{part}", None
        attn = f"blocks.{layer.place[0]}.attn"
        return (f"{attn}.proj", None) if part == "to_out.0" else (f"{attn}.qkv", PARTS.index(part))


def find_family(model, is_unet: bool, name: str) -> str:
    """What the trainer calls this kind of base, and "sd15" or "pixart_sigma", whose layers are another's by name and width.

    SD1.5 reads other prompts than SD2.1, PixArt-Sigma SDXL's latents and not SD's. Raises ValueError for what only looks like a base.
    """
    if not is_unet:
        return "pixart_sigma" if isinstance(model.latent_format, comfy.latent_formats.SDXL) else "pixart"
    if isinstance(model, comfy.model_base.SDXL):
        return "sdxl"
    config = model.model_config.unet_config
    if config.get("adm_in_channels") is not None:  # a vector beside the prompt, which the plain SD models have not
        raise ValueError(f"A {name} arrived, a refiner or a model that reads a picture's embedding: load {BASES}, the base itself.")
    return "sd15" if config.get("context_dim") == SD1_PROMPT else "sd21"


def unet_layers(network: unets.UNetModel, config: dict) -> list[Layer]:
    """Place: the transformer block's path, then core's key for its replacement (input, middle or output; block; index in it)."""
    names = {value: key for key, value in comfy.utils.unet_to_diffusers(config).items()}
    levels, sizes = len(network.channel_mult), list(network.num_res_blocks)
    stages = {("middle", 0): levels + 1}
    number = 1  # input block 0 is the first convolution
    for level, size in enumerate(sizes):
        stages |= {("input", number + index): level + 1 for index in range(size)}
        number += size + 1  # the last of a level, if it is not the last level, halves the resolution
    number = 0
    for level, size in enumerate(reversed(sizes)):
        stages |= {("output", number + index): levels + 2 + level for index in range(size + 1)}
        number += size + 1
    blocks = [("input", index, part) for index, part in enumerate(network.input_blocks)]
    blocks += [("middle", 0, network.middle_block)] + [("output", index, part) for index, part in enumerate(network.output_blocks)]
    layers: list[Layer] = []
    for kind, index, block in blocks:
        for position, part in enumerate(block):
            for inner in range(len(getattr(part, "transformer_blocks", ()))):
                where = "middle_block" if kind == "middle" else f"{kind}_blocks.{index}"
                path = f"{where}.{position}.transformer_blocks.{inner}"
                name = names[f"{path}.attn1.to_q.weight"].removesuffix(".to_q.weight")
                layers.append(Layer(name, (path, kind, index, inner), stages[kind, index], len(layers)))
    return layers


def pixart_layers(network: pixart.PixArtMS) -> list[Layer]:
    """Place: the block's number."""
    if any(block.attn.sr_ratio > 1 for block in network.blocks):
        raise ValueError("A PixArt with compressed keys (Sigma 2K) arrived, whose tokens do not pair: load the model for 1024 or less.")
    return [Layer(f"transformer_blocks.{index}.attn1", (index,), index, index) for index in range(len(network.blocks))]
