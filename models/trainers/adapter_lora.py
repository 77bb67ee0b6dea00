"""A depth adapter together with a LoRA of its base: SpatialFusion's second stage for one card.

The paper unfreezes the whole base while it learns to use depth; here low-rank layers of its attention learn
it. Both parts train by the adapter's loss, at one learning rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ..core.training.loop import Task
from ..spatial_diff.lora import LowRankLayers, save_lora
from ..spatial_fusion.config import DepthAdapterConfig
from ..spatial_fusion.network import AdapterNetwork

LORA_FILE = "depth_adapter_lora.safetensors"  # beside the adapter, in the output folder of a run
KIND = "LoRA trained with a depth adapter"


class AdapterAndLora(nn.Module):
    """What is trained and saved. The low-rank layers act in the base, where they are attached."""

    def __init__(self, adapter: AdapterNetwork, lora: LowRankLayers):
        super().__init__()
        self.adapter, self.lora = adapter, lora

    @property
    def config(self) -> DepthAdapterConfig:
        return self.adapter.config

    def forward(self, coded: Tensor, mask: Tensor) -> Tensor:
        """F, as the adapter alone."""
        return self.adapter(coded, mask)


def add_lora(
    task: Task, network: nn.Module, paths: re.Pattern, *, rank: int, seed: int, dtype: torch.dtype
) -> Task:
    """The Task of an adapter and a LoRA of `network`, whose output starts as it is: alpha is the rank."""
    lora = LowRankLayers(network, rank, rank, Generator().manual_seed(seed), paths)
    lora.attach(network)
    return replace(
        task,
        model=AdapterAndLora(task.model, lora),
        export=partial(export_parts, export=task.export, rank=rank, dtype=dtype),
    )


def export_parts(
    folder: Path, state: Mapping[str, Tensor], *, export: Callable, rank: int, dtype: torch.dtype
) -> None:
    """Write the averaged adapter and LoRA as ComfyUI loads them."""
    parts: dict[str, dict[str, Tensor]] = {"adapter": {}, "lora": {}}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    export(folder, parts["adapter"])
    save_lora(folder / LORA_FILE, parts["lora"], rank=rank, alpha=rank, dtype=dtype, kind=KIND)
