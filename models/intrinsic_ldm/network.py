"""The base model's network with coupled self-attention: a diffusers UNet or transformer.

    coupling, layers = couple(unet, lora=updates)  # installs the processors; diffusers is not imported
    rows = Rows(("cond", "uncond"), batch=2)  # per prompt: 2 images, then their 2 sets of maps
    weights = {layer.block: schedule.weight(layer.number("stages"), t) for layer in layers}
    with coupling.call(rows, weights):
        unet(x, t, encoder_hidden_states=context)  # each prompt's context repeated for its 4 rows

In training w is 1 in every layer (`coupling.call(rows)`), and the LoRA matrices may require gradients.
In ComfyUI the same equation and LoRA act inside ComfyUI's networks, see nodes/host/intrinsic_ldm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import Coupling
from .config import Family
from .layers import Layer
from .lora import LowRank, Projection, add_to_stream

PIXELS = 8  # pixels per latent pixel along each side
BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.")
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # the projections of a self-attention
ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


@dataclass(frozen=True)
class Backbone:
    """A base model's network of any family, with diffusers' DDPM scheduler for its noise schedule.

    The family sets the conditioning inputs: "sd21" takes the context, "sdxl" also the pooled embedding and
    the image size, "pixart" the context mask and, for the 1024 pixel model, the image size.
    """

    network: nn.Module
    family: Family
    scheduler: Any
    kind: str = ""  # base of its LoRA where narrower than the family: "sd15" and "pixart_sigma"

    @property
    def name(self) -> str:
        """Name of the base model in a LoRA file's metadata; the nodes use the same names."""
        return self.kind or self.family

    @property
    def component(self) -> str:
        """The network's component name in a diffusers pipeline, also the key prefix in LoRA files."""
        return find_component(self.family)

    @property
    def steps(self) -> int:
        return self.scheduler.config.num_train_timesteps

    @property
    def channels(self) -> int:
        return self.network.config.in_channels

    @property
    def context_width(self) -> int:
        config = self.network.config
        return config.caption_channels if self.family == "pixart" else config.cross_attention_dim

    @property
    def multiple(self) -> int:
        """Every image's height and width must be a multiple of this, in pixels."""
        config = self.network.config
        return PIXELS * (
            config.patch_size if self.family == "pixart" else 2 ** (len(config.block_out_channels) - 1)
        )

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """sqrt(a) x0 + sqrt(1 - a) noise at the timesteps t (b,)."""
        return self.scheduler.add_noise(x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The training target of the base model: the noise, or v = sqrt(a) noise - sqrt(1 - a) x0."""
        return (
            noise
            if self.scheduler.config.prediction_type == "epsilon"
            else self.scheduler.get_velocity(x0, noise, t)
        )

    def predict(self, x: Tensor, t: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
        """The model output for rows x (b, c, h, w) at timesteps t (b,) or (), in float32.

        `prompt` holds the family's CONDITIONS.
        """
        dtype, height, width = self.network.dtype, PIXELS * x.shape[2], PIXELS * x.shape[3]
        more = {}
        if self.family == "sdxl":
            # micro-conditioning of an uncropped image: original size, crop offset 0, target size
            size = torch.tensor([[height, width, 0, 0, height, width]], device=x.device, dtype=dtype)
            more["added_cond_kwargs"] = {
                "text_embeds": prompt["pooled"].to(dtype),
                "time_ids": size.expand(len(x), -1),
            }
        if self.family == "pixart":
            t = t.expand(len(x))
            more["encoder_attention_mask"] = prompt["context_mask"].to(dtype)
            more["added_cond_kwargs"] = _pixart_size(self.network, height, width, x.to(dtype))
        context = prompt["context"].to(dtype)
        (out, *_) = self.network(
            x.to(dtype), timestep=t, encoder_hidden_states=context, return_dict=False, **more
        )
        return out[:, : x.shape[1]].float()  # the other half of PixArt's channels is the variance


def find_component(family: Family) -> str:
    return "transformer" if family == "pixart" else "unet"


def _pixart_size(network: nn.Module, height: int, width: int, like: Tensor) -> dict[str, Tensor | None]:
    if not network.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    rows = len(like)
    return {
        "resolution": like.new_tensor([[height, width]]).expand(rows, -1),
        "aspect_ratio": like.new_tensor([[height / width]]).expand(rows, -1),
    }


class CrossDomainProcessor:
    """Replaces the processor of a diffusers Attention; hidden_states are (b, n, d)."""

    def __init__(self, layer: Layer, coupling: Coupling, lora: Mapping[str, LowRank]):
        self.layer, self.coupling = layer, coupling
        self.lora = {name: lora.get(f"{layer.name}.{name}") for name in PROJECTIONS}

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states=None,
        attention_mask=None,
        temb=None,
        **kwargs,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None or attn.group_norm is not None:
            raise ValueError(
                f"Expected plain self-attention in {self.layer.name}, as SD and PixArt have it, got a "
                "prompt, an attention mask or a group norm. Use a UNet or transformer of these."
            )
        q, k, v = (
            self._project(getattr(attn, name), name, hidden_states) for name in ("to_q", "to_k", "to_v")
        )
        out = self.coupling.attend(
            self.layer.block,
            q,
            k,
            v,
            heads=attn.heads,
            plain=lambda q, k, v: attend_plain(q, k, v, attn.heads),
        )
        out = attn.to_out[1](self._project(attn.to_out[0], "to_out.0", out))
        out = out + hidden_states if attn.residual_connection else out
        return out / attn.rescale_output_factor

    def _project(self, linear: nn.Module, name: str, x: Tensor) -> Tensor:
        out = linear(x)
        if self.lora[name] is not None:
            add_to_stream(out, x, self.lora[name], self.coupling.rows, "intrinsic")
        return out


def attend_plain(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of (b, n, h * d) within each row."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def couple(model: nn.Module, lora: Mapping[str, LowRank] | None = None) -> tuple[Coupling, list[Layer]]:
    """Install our processors in every self-attention of a diffusers model; returns coupling and layers.

    `lora` is keyed as `projections(model)`, the form `read_lora` returns; ValueError for an unknown name.
    """
    coupling, layers, lora = Coupling(), find_attention_layers(model), dict(lora or {})
    unknown = sorted(set(lora) - set(projections(model)))
    if unknown:
        raise ValueError(
            f"Expected updates of self-attention projections of this {type(model).__name__}, got one of "
            f"{unknown[0]}. Choose the LoRA trained on this base."
        )
    ours = {f"{layer.name}.processor": CrossDomainProcessor(layer, coupling, lora) for layer in layers}
    model.set_attn_processor(model.attn_processors | ours)
    return coupling, layers


def find_attention_layers(model: nn.Module) -> list[Layer]:
    """The self-attentions of a diffusers UNet2DConditionModel or PixArt transformer, in running order."""
    names = [name for name, _ in model.named_modules() if name.endswith(".attn1")]
    if not names:
        raise ValueError(
            f"Expected a network with self-attention layers called attn1, got {type(model).__name__}. Pass a "
            "UNet or a PixArt transformer."
        )
    if not hasattr(model, "down_blocks"):
        return [Layer(name, (name,), index, index) for index, name in enumerate(names)]
    # a stable sort: within down, middle and up, module order is running order
    names.sort(key=lambda name: ORDER[name.split(".")[0]])
    levels = len(model.down_blocks)
    return [Layer(name, (name,), stage_of(name, levels), index) for index, name in enumerate(names)]


def stage_of(name: str, levels: int) -> int:
    """Stage number: 1 to levels on the down path, levels + 1 in the middle, then the up path."""
    match = BLOCK.match(name)
    if match is None:
        return levels + 1
    return int(match[2]) + (1 if match[1] == "down_blocks" else levels + 2)


def projections(model: nn.Module) -> dict[str, Projection]:
    """Every projection that an intrinsic LoRA may change, by module path."""
    widths = {}
    for layer in find_attention_layers(model):
        attn = model.get_submodule(layer.name)
        for name in PROJECTIONS:
            linear = attn.get_submodule(name)
            widths[f"{layer.name}.{name}"] = Projection(linear.in_features, linear.out_features)
    return widths
