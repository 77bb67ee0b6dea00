"""Training of a VGGT network on views of the procedural world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from torch import Generator, Tensor

from ..core.training.loop import Task
from ..core.training.recipe import Recipe
from ..core.training.settings import check_settings, read_settings
from ..vggt.config import VggtConfig, find_preset
from ..vggt.network import Vggt
from ..vggt.training import LossSettings, TrainedVggt, init_weights, loss
from ..vggt.weights import load_network, save_network
from .world_views import WorldViews, WorldViewsRequest, render_world_views

NETWORK_FILE = "vggt.safetensors"  # what a run ships, in its output folder


@dataclass(frozen=True)
class ModelSettings:
    """The `model` part of a recipe. Without `weights` the network starts from nothing."""

    config: Mapping[str, Any] = field(default_factory=dict)  # changes to the preset
    weights: str = ""  # a network of this configuration to go on from
    # precision of the file that a run writes; int8: large matrices in eight bits, the rest in float16
    ship: Literal["float32", "float16", "int8"] = "float16"


def build_vggt(recipe: Recipe) -> Task:
    """The Task of the system `vggt`. Views that its data folder lacks are rendered first."""
    request = read_settings(WorldViewsRequest, recipe.data, "recipe's data")
    start = read_settings(ModelSettings, recipe.model, "recipe's model")
    settings = read_settings(LossSettings, recipe.loss, "recipe's loss")
    changes = check_settings(start.config, get_type_hints(VggtConfig), "recipe's model.config")
    config = replace(find_preset(recipe.preset), **changes)
    if start.weights:
        network = load_network(start.weights, config=config, dtype=torch.float32)[0]
    else:
        network = Vggt(config)
        init_weights(network, Generator().manual_seed(recipe.seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = TrainedVggt(network)
    render_world_views(request)
    return Task(
        model=model,
        loss=partial(loss, settings=settings),
        dataset=WorldViews(request),
        export=partial(export_network, config=config, ship=start.ship),
    )


def export_network(
    folder: Path, state: Mapping[str, Tensor], *, config: VggtConfig, ship: str
) -> None:
    """Write the network's averaged weights as they ship, without the probes."""
    network, prefix = Vggt(config, device="meta"), "network."
    kept = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    network.load_state_dict(kept, assign=True)
    int8 = ship == "int8"
    dtype = torch.float16 if int8 else getattr(torch, ship)
    save_network(folder / NETWORK_FILE, network, config, dtype=dtype, int8=int8)
