"""I-LDM in a diffusers UNet or transformer: attention processors over the same equation and LoRA as in ComfyUI, for scripts and training.

    coupling, layers = couple(unet, lora=low_rank_parts)        # installs the processors; diffusers itself is not imported
    rows = Rows(("cond", "uncond"), batch=2)                    # per prompt: 2 images, then their 2 sets of maps
    weights = {layer.block: schedule.weight(layer.number("stages"), t) for layer in layers}
    with coupling.call(rows, weights):
        unet(x, t, encoder_hidden_states=prompts)               # each prompt repeated for its 4 rows

In training w is 1 in every layer (`coupling.call(rows)`), and the LoRA's tensors may require gradients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Coupling
from .layers import Layer
from .lora import LowRank, Projection, add_to_stream

PLACE = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.")
PARTS = ("to_q", "to_k", "to_v", "to_out.0")  # the projections of a self-attention
ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


class CrossDomainProcessor:
    """What a diffusers Attention calls in place of its own; hidden_states are (rows, tokens, width)."""

    def __init__(self, layer: Layer, coupling: Coupling, lora: Mapping[str, LowRank]):
        self.layer, self.coupling = layer, coupling
        self.lora = {part: lora.get(f"{layer.name}.{part}") for part in PARTS}

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None or attn.group_norm is not None:
            raise ValueError(f"{self.layer.name} was given a prompt, a mask or a group norm, which no self-attention of SD or PixArt has.")
        q, k, v = (self._project(getattr(attn, part), part, hidden_states) for part in ("to_q", "to_k", "to_v"))
        out = self.coupling.attend(self.layer.block, q, k, v, heads=attn.heads, plain=lambda q, k, v: attend_plain(q, k, v, attn.heads))
        out = attn.to_out[1](self._project(attn.to_out[0], "to_out.0", out))
        out = out + hidden_states if attn.residual_connection else out
        return out / attn.rescale_output_factor

    def _project(self, linear: nn.Module, part: str, x: Tensor) -> Tensor:
        out = linear(x)
        if self.lora[part] is not None:
            add_to_stream(out, x, self.lora[part], self.coupling.rows, "intrinsic")
        return out


def attend_plain(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of (rows, tokens, heads * width) within each row."""
    parts = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def couple(model: nn.Module, lora: Mapping[str, LowRank] | None = None) -> tuple[Coupling, list[Layer]]:
    """Put our processors into every self-attention of a diffusers model; the state they share, and the layers.

    `lora` by `projections(model)`'s names, as `read_lora` gives it; a name of no layer raises ValueError.
    """
    coupling, layers, lora = Coupling(), find_layers(model), dict(lora or {})
    unknown = sorted(set(lora) - set(projections(model)))
    if unknown:
        raise ValueError(f"The LoRA changes {unknown[0]}, which is no self-attention projection of this {type(model).__name__}.")
    ours = {f"{layer.name}.processor": CrossDomainProcessor(layer, coupling, lora) for layer in layers}
    model.set_attn_processor(model.attn_processors | ours)
    return coupling, layers


def find_layers(model: nn.Module) -> list[Layer]:
    """The self-attention layers of a diffusers UNet2DConditionModel or PixArt transformer, in the order in which they run."""
    names = [name for name, _ in model.named_modules() if name.endswith(".attn1")]
    if not names:
        raise ValueError(f"A {type(model).__name__} arrived, which has no attention called attn1: give a UNet or a PixArt transformer.")
    if not hasattr(model, "down_blocks"):
        return [Layer(name, (name,), index, index) for index, name in enumerate(names)]
    names.sort(key=lambda name: ORDER[name.split(".")[0]])  # a stable sort: inside a part the module order is the running order
    levels = len(model.down_blocks)
    return [Layer(name, (name,), stage_of(name, levels), index) for index, name in enumerate(names)]


def stage_of(name: str, levels: int) -> int:
    """1 to levels going down, levels + 1 in the middle, then up."""
    found = PLACE.match(name)
    if found is None:
        return levels + 1
    return int(found[2]) + (1 if found[1] == "down_blocks" else levels + 2)


def projections(model: nn.Module) -> dict[str, Projection]:
    """Every projection that an intrinsic LoRA may change."""
    found = {}
    for layer in find_layers(model):
        attn = model.get_submodule(layer.name)
        for part in PARTS:
            linear = attn.get_submodule(part)
            found[f"{layer.name}.{part}"] = Projection(linear.in_features, linear.out_features)
    return found
