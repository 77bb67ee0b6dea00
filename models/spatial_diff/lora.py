"""Low-rank layers of an editor: trained beside the frozen network, stored as ComfyUI reads them, merged.

A file has PEFT's tensor names with ComfyUI's prefix, `diffusion_model.PATH.lora_A.weight`, `.lora_B.weight`,
and an `alpha` for each layer; the network is the unchanged one of BFL's names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..core.weights.files import WeightsError, describe, read_header, read_tensors, write_tensors

PREFIX = "diffusion_model."
# the linear layers of every block's attention; a single block's first layer has its MLP's inputs, too
ATTENTION = (r"img_attn\.(qkv|proj)", r"txt_attn\.(qkv|proj)", r"linear1", r"linear2")
PATH = re.compile(rf"(double|single)_blocks\.\d+\.({'|'.join(ATTENTION)})")
KIND = "LoRA of SpatialDiff"


class EditorLowRank(nn.Module):
    """x -> scale * up(down(x)); down is random, up starts at 0."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, generator: Generator):
        super().__init__()
        reach = inputs**-0.5
        self.down = nn.Parameter((torch.rand(rank, inputs, generator=generator) * 2 - 1) * reach)
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.down), self.up)


class LowRankLayers(nn.Module):
    """A low-rank layer for each attention layer of a network, those whose paths match `paths`."""

    def __init__(
        self, network: nn.Module, rank: int, alpha: float, generator: Generator, paths: re.Pattern = PATH
    ):
        super().__init__()
        self.rank, self.alpha, self.paths = rank, alpha, paths
        linears = find_attention_linears(network, paths)
        sizes = {name: (m.in_features, m.out_features) for name, m in linears.items()}
        self.layers = nn.ModuleDict(
            {
                as_key(path): EditorLowRank(inputs, outputs, rank, alpha / rank, generator)
                for path, (inputs, outputs) in sizes.items()
            }
        )

    def attach(self, network: nn.Module) -> None:
        """Add each layer's output to that of its linear layer, from now on."""
        for path, linear in find_attention_linears(network, self.paths).items():
            layer = self.layers[as_key(path)]
            linear.register_forward_hook(
                lambda module, inputs, out, layer=layer: out + layer(inputs[0]).to(out)
            )


def find_attention_linears(network: nn.Module, paths: re.Pattern = PATH) -> dict[str, nn.Module]:
    """The linear layers of every block's attention, by path."""
    return {name: module for name, module in network.named_modules() if paths.fullmatch(name)}


def as_key(path: str) -> str:
    """A path as the name of a submodule, which must not have dots."""
    return path.replace(".", "-")


def save_lora(
    path: str | os.PathLike, state: Mapping[str, Tensor], *, rank: int, alpha: float, dtype: torch.dtype,
    kind: str = KIND,
) -> Path:  # fmt: skip
    """Write the state of LowRankLayers, `layers.PATH.down` and `.up`, as one file."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        key, part = name.removeprefix("layers.").rsplit(".", 1)
        where = PREFIX + key.replace("-", ".")
        tensors[f"{where}.lora_{'A' if part == 'down' else 'B'}.weight"] = value.to(dtype)
        tensors[f"{where}.alpha"] = torch.tensor(float(alpha))
    metadata = {
        "lora_adapter_metadata": json.dumps({"r": rank, "lora_alpha": alpha}),
        "licence": "Apache-2.0",
    }
    return write_tensors(path, tensors, metadata, kind=kind)


def read_editor_lora(path: str | os.PathLike) -> dict[str, tuple[Tensor, Tensor, float]]:
    """By layer: down, up, and the scale. WeightsError says what a wrong file is."""
    header, state = read_header(path), read_tensors(path)
    layers = {}
    for name in header.shapes:
        if name.startswith(PREFIX) and name.endswith(".lora_A.weight"):
            where = name[: -len(".lora_A.weight")]
            down, up = state[name].float(), state[f"{where}.lora_B.weight"].float()
            alpha = float(state[f"{where}.alpha"]) if f"{where}.alpha" in state else float(len(down))
            layers[where.removeprefix(PREFIX)] = (down, up, alpha / len(down))
    if not layers:
        raise WeightsError(
            f"Expected a LoRA with names like {PREFIX}double_blocks.0.img_attn.qkv.lora_A.weight in "
            f"{path}, got {describe(header)}. Use a LoRA that SpatialDiff's training wrote."
        )
    return layers


@torch.no_grad()
def merge_lora(network: nn.Module, path: str | os.PathLike, strength: float = 1.0) -> None:
    """Add a LoRA's file to the weights of a network. WeightsError if it is another network's."""
    for name, (down, up, scale) in read_editor_lora(path).items():
        try:
            weight = network.get_submodule(name).weight
        except AttributeError as error:
            raise WeightsError(
                f"Expected a LoRA of this network in {path}, got one with the layer {name}. Use its own LoRA."
            ) from error
        if tuple(weight.shape) != (len(up), down.shape[1]):
            raise WeightsError(
                f"Expected {name} of {path} for a layer {tuple(weight.shape)}, got "
                f"{(len(up), down.shape[1])}. Use this network's own LoRA."
            )
        weight += (strength * scale * (up @ down)).to(weight)
