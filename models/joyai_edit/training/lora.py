"""Training a LoRA on the frozen JoyImage-Edit network: the release's own settings are rank 16 and alpha 16.

diffusers' class has no PEFT mixin, so the low-rank layers are forward hooks on its linear layers. The file
that ships has ComfyUI's prefix, and loads onto the bfloat16 network and onto quantized ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ...core.text_files import show_path
from ...core.training.data import FolderDataset
from ...core.training.loop import Task
from ...core.training.recipe import Recipe
from ...core.training.settings import check_settings, read_settings
from ...core.weights.files import check_finite, read_tensors, write_tensors
from .loss import EditLoss, edit_loss
from .transformer import as_facts, find_files, load_transformer, report_size

LORA_FILE = "joyai_lora.safetensors"  # in the run's output folder
PREFIX = "diffusion_model."  # the only one under which core finds this network's layers
ATTENTION = ("attn.img_attn_qkv", "attn.img_attn_proj", "attn.txt_attn_qkv", "attn.txt_attn_proj")
MLP = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
KEYS = ("latent", "reference", "context", "context_tokens", "prefix_tokens", "empty_tail")


@dataclass(frozen=True)
class AdapterSettings:
    """The `model` settings of a recipe."""

    base: str = ""  # a diffusers folder, or ComfyUI's file of the network
    rank: int = 16
    alpha: float = 16.0  # the LoRA's scale is alpha / rank
    layers: Literal["attention", "all"] = "attention"  # of every block; all: its MLPs, too
    weights: str = ""  # a LoRA of an earlier run to go on from, of the same rank and layers
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen network
    checkpointing: bool = True  # recompute each block in the backward pass
    shard: bool = False  # shard the frozen weights over several processes (FSDP2)
    ship: Literal["float32", "float16", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        if not self.base:
            raise ValueError(
                "Expected a base in the recipe's model, got none. Give a diffusers folder of JoyImage-Edit, "
                "or ComfyUI's file of its network."
            )
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                "Expected a rank of at least 1 and an alpha above 0 in the recipe's model, got rank "
                f"{self.rank} and alpha {self.alpha}. Correct them."
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def targets(self) -> tuple[str, ...]:
        return ATTENTION if self.layers == "attention" else ATTENTION + MLP


class AdapterLayer(nn.Module):
    """x -> scale * up(down(x)); down is uniform in +-inputs^-0.5, up is zero at initialization."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, scale: float, generator: Generator):
        super().__init__()
        bound = inputs**-0.5
        self.down = nn.Parameter((torch.rand(rank, inputs, generator=generator) * 2 - 1) * bound)
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.down.dtype), self.down), self.up) * self.scale


class Adapters(nn.Module):
    """The trained layers, named layers.<module path with _ for .>.down and .up."""

    def __init__(self, network: nn.Module, settings: AdapterSettings, generator: Generator):
        super().__init__()
        blocks = range(len(network.double_blocks))
        self.paths = tuple(f"double_blocks.{block}.{part}" for block in blocks for part in settings.targets)
        self.layers = nn.ModuleDict()
        for path in self.paths:
            linear = network.get_submodule(path)
            sizes = (linear.in_features, linear.out_features, settings.rank)
            self.layers[as_name(path)] = AdapterLayer(*sizes, scale=settings.scale, generator=generator)

    def attach(self, network: nn.Module) -> None:
        """Add each layer's output to that of the network's own, by a forward hook."""
        for path in self.paths:
            network.get_submodule(path).register_forward_hook(
                partial(add_output, layer=self.layers[as_name(path)])
            )

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor], name: str) -> None:
        """Load a file of an earlier run; ValueError names what differs."""
        check_finite(tensors, f"the LoRA {name}")
        for path in self.paths:
            layer = self.layers[as_name(path)]
            for part, letter in (("down", "A"), ("up", "B")):
                own, key = getattr(layer, part), f"{PREFIX}{path}.lora_{letter}.weight"
                if key not in tensors or tensors[key].shape != own.shape:
                    got = tuple(tensors[key].shape) if key in tensors else "nothing"
                    raise ValueError(
                        f"Expected {tuple(own.shape)} as {key} in the LoRA {name}, got {got}. Set the "
                        "recipe's rank and layers to the file's."
                    )
                own.copy_(tensors[key])
            alpha = tensors.get(f"{PREFIX}{path}.alpha", torch.tensor(float(len(layer.down))))
            layer.up.mul_(float(alpha) / len(layer.down) / layer.scale)


def add_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *, layer: AdapterLayer):
    """A forward hook: the linear layer's output with its low-rank update."""
    return output + layer(inputs[0]).to(output.dtype)


def as_name(path: str) -> str:
    return path.replace(".", "_")


def build(recipe: Recipe) -> Task:
    """The Task of a recipe; `data.folder` is the output of `spatialweave joyai encode`."""
    settings = read_settings(AdapterSettings, recipe.model, "recipe's model")
    loss = read_settings(EditLoss, recipe.loss, "recipe's loss")
    check_settings(recipe.data, {"folder": str}, "recipe's data")
    dataset = open_edits(recipe.data.get("folder", ""))
    dtype = getattr(torch, settings.precision)
    network = load_transformer(settings.base, dtype, shard=settings.shard)
    check_encoded_edit(dataset[0], network, recipe.data["folder"])
    model = Adapters(network, settings, Generator().manual_seed(recipe.seed))
    if settings.weights:
        model.fill(read_tensors(settings.weights), settings.weights)
    if settings.checkpointing:
        network.enable_gradient_checkpointing()
    model.attach(network)
    report_size(network, model, int(os.environ.get("WORLD_SIZE", "1")) if settings.shard else 1)
    facts = as_facts(find_files(settings.base))
    return Task(
        model=model,
        loss=partial(edit_loss, network=network, settings=loss),
        dataset=dataset,
        companions=(network,),
        export=partial(export_lora, paths=model.paths, settings=settings, facts=facts),
    )


def open_edits(folder: str) -> FolderDataset:
    """The encoded dataset."""
    if not folder:
        raise ValueError(
            "Expected a folder in the recipe's data, got none. Make one with: spatialweave joyai encode"
        )
    return FolderDataset(folder, keys=KEYS, needs=KEYS)


def check_encoded_edit(sample: Mapping[str, Any], network: nn.Module, folder: str) -> None:
    """ValueError unless the dataset was encoded for this network."""
    latent, reference = tuple(sample["latent"].shape), tuple(sample["reference"].shape)
    channels, width = network.config.in_channels, network.config.text_dim
    patched = len(latent) == 3 and not any(side % 2 for side in latent[1:])
    if latent != reference or latent[0] != channels or not patched or sample["context"].shape[-1] != width:
        raise ValueError(
            f"Expected two equal latents ({channels}, h, w) of even sides and a context of width {width} in "
            f"{show_path(Path(folder))}, got {latent}, {reference} and width {sample['context'].shape[-1]}. "
            "Encode the folder for this network."
        )


def export_lora(
    folder: Path, state: Mapping[str, Tensor], *, paths: tuple[str, ...], settings: AdapterSettings,
    facts: str,
) -> None:  # fmt: skip
    """Write the LoRA as one file: PEFT's tensor names with ComfyUI's prefix, and an alpha for each layer."""
    dtype, tensors = getattr(torch, settings.ship), {}
    for path in paths:
        for part, letter in (("down", "A"), ("up", "B")):
            value = state[f"layers.{as_name(path)}.{part}"]
            tensors[f"{PREFIX}{path}.lora_{letter}.weight"] = value.to(dtype)
        tensors[f"{PREFIX}{path}.alpha"] = torch.tensor(float(settings.alpha))
    metadata = {"base": "JoyImage-Edit", "network": facts}
    metadata["lora_adapter_metadata"] = json.dumps(
        {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": list(settings.targets)}
    )
    write_tensors(folder / LORA_FILE, tensors, metadata, kind="LoRA for JoyImage-Edit")
