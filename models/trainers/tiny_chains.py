"""The way from nothing to each tiny system's weights: commands that make data, and recipes, in their order.

Paths are relative: recipes to the pack, `data/` and `runs/` to where the command runs. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DataStep:
    """A command that writes a dataset folder."""

    command: str  # behind `spatialweave`
    makes: str  # the folder
    # of the time for training, of a command that reads what the steps before it trained;
    # 0: it needs none of them, and its data is made beforehand
    share: float = 0.0


@dataclass(frozen=True)
class TrainStep:
    """A recipe."""

    recipe: str
    share: float  # of the time, relative to the other steps
    # what a card changes: more samples in a step, and a learning rate for them
    card: Mapping[str, Any] = field(default_factory=dict)
    # what building its task leaves in a data folder, made beforehand as well: a glob of files
    caches: str = ""


Step = DataStep | TrainStep

CAPTURED = {"device_noise": True, "capture": True}  # of the losses that are written for it
WORLD = DataStep("world data/world --scenes 24000 --size 128", "data/world")
WORLD_CACHE = "data/world/latents-*.safetensors"
_JOINT = "models/modality_forcing/recipes/tiny_"
_MAPS = "models/intrinsic_ldm/recipes/tiny_"
_EDITS = "models/spatial_diff/recipes/tiny_"
_FUSION = "models/spatial_fusion/recipes/"

# The shares follow what the recipes take on two CPU cores, roughly: seconds of a step times steps. Sixteen
# times the samples get about twice the learning rate: chosen, not measured.
CHAINS: Mapping[str, tuple[Step, ...]] = {
    "codec": (
        WORLD,
        TrainStep("models/demo/recipes/codec.json", 1.0, {"batch_size": 256, "lr": 0.004}),
    ),
    "modality_forcing": (
        WORLD,
        DataStep("world data/world_6000 --scenes 6000 --size 128", "data/world_6000"),
        TrainStep(
            f"{_JOINT}1_text_to_image.json", 0.27, {"batch_size": 512, "lr": 0.004, **CAPTURED}, WORLD_CACHE
        ),
        TrainStep(f"{_JOINT}2_both_streams.json", 0.18, {"batch_size": 512, "lr": 0.0024, **CAPTURED}),
        TrainStep(f"{_JOINT}3_text_to_image.json", 0.24, {"batch_size": 512, "lr": 0.003, **CAPTURED}),
        TrainStep(f"{_JOINT}4_both_streams.json", 0.26, {"batch_size": 512, "lr": 0.0024, **CAPTURED}),
        TrainStep(
            f"{_JOINT}5_depth_head.json", 0.05, {"batch_size": 256, "lr": 0.0004, **CAPTURED},
            "data/world_6000/latents-*.safetensors",
        ),
    ),
    "vggt": (
        TrainStep(
            "models/vggt/recipes/tiny.json", 1.0, {"batch_size": 64, "lr": 0.004}, "data/world_views/shard-*"
        ),
    ),
    "intrinsic_ldm": (
        WORLD,
        DataStep("world data/world_maps --scenes 4000 --size 128 --normals", "data/world_maps"),
        DataStep("world data/world_pairs --scenes 12000 --size 128 --normals", "data/world_pairs"),
        TrainStep(f"{_MAPS}1_image_vae.json", 0.06, {"batch_size": 256, "lr": 0.0025}),
        TrainStep(f"{_MAPS}2_image_vae.json", 0.10, {"batch_size": 64, "lr": 0.003}),
        TrainStep(f"{_MAPS}3_base.json", 0.24, {"batch_size": 256, "lr": 0.002}),
        TrainStep(f"{_MAPS}4_intrinsic_vae.json", 0.10, {"batch_size": 64, "lr": 0.002}),
        TrainStep(f"{_MAPS}5_intrinsic_vae.json", 0.05, {"batch_size": 64, "lr": 0.002}),
        DataStep(
            "intrinsics encode data/world_maps data/world_maps_latents_1 --batch 64 --base runs/tiny_base_1 "
            "--vae runs/tiny_intrinsic_vae/intrinsic_vae.safetensors",
            "data/world_maps_latents_1", 0.02,
        ),
        TrainStep(f"{_MAPS}6_base.json", 0.08, {"batch_size": 256, "lr": 0.001}),
        TrainStep(f"{_MAPS}7_base.json", 0.04, {"batch_size": 256, "lr": 0.001}),
        DataStep(
            "intrinsics encode data/world_pairs data/world_pairs_latents_1 --batch 64 --places 4 "
            "--base runs/tiny_base_3 --vae runs/tiny_intrinsic_vae/intrinsic_vae.safetensors",
            "data/world_pairs_latents_1", 0.04,
        ),
        TrainStep(f"{_MAPS}8_base.json", 0.09, {"batch_size": 256}),
        TrainStep(f"{_MAPS}9_base.json", 0.05, {"batch_size": 128, "lr": 0.0016}),
        TrainStep(f"{_MAPS}10_base.json", 0.06, {"batch_size": 128, "lr": 0.0012}),
        DataStep(
            "intrinsics encode data/world_pairs data/world_pairs_latents_2 --batch 64 --places 4 "
            "--base runs/tiny_base --vae runs/tiny_intrinsic_vae/intrinsic_vae.safetensors",
            "data/world_pairs_latents_2", 0.04,
        ),
        TrainStep(f"{_MAPS}11_intrinsic_lora.json", 0.03, {"batch_size": 128, "lr": 0.004}),
    ),
    "spatial_diff": (
        DataStep("world data/moves --kind moves --scenes 6000", "data/moves"),
        DataStep("spatial_diff encode data/moves data/moves_latents --mirror --cells", "data/moves_latents"),
        DataStep("world data/moves --kind moves --scenes 18000", "data/moves"),
        DataStep(
            "spatial_diff encode data/moves data/moves_latents_2 --mirror --cells", "data/moves_latents_2"
        ),
        DataStep(
            "spatial_diff geometry data/moves data/moves_geometry --mirror --pixels", "data/moves_geometry"
        ),
        TrainStep(f"{_EDITS}1_editor.json", 0.11, {"batch_size": 512, "lr": 0.0035, **CAPTURED}),
        TrainStep(f"{_EDITS}2_editor.json", 0.65, {"batch_size": 512, "lr": 0.0035, **CAPTURED}),
        TrainStep(f"{_EDITS}3_connector.json", 0.11, {"batch_size": 256, "lr": 0.0015}),
        TrainStep(f"{_EDITS}7_lds.json", 0.13, {"batch_size": 256, "lr": 0.0015}),
    ),
    "spatial_fusion": (
        WORLD,
        TrainStep(
            f"{_FUSION}depth_adapter_tiny.json", 0.25, {"batch_size": 128, "lr": 0.006},
            "data/world_depth_latents/manifest.jsonl",
        ),
        TrainStep(f"{_FUSION}caption_lm_tiny.json", 0.15, {"batch_size": 512, "lr": 0.003}),
        TrainStep(f"{_FUSION}spatial_transformer_tiny.json", 0.35, {"batch_size": 128, "lr": 0.004}),
        TrainStep(f"{_FUSION}spatial_fusion_tiny.json", 0.25, {"batch_size": 128, "lr": 0.001}),
    ),
}  # fmt: skip


def move_paths(value: Any, folders: Mapping[str, Path]) -> Any:
    """A JSON value in which each string below `data/` or `runs/` names the folder put in its place."""
    if isinstance(value, Mapping):
        return {key: move_paths(each, folders) for key, each in value.items()}
    first, slash, rest = value.partition("/") if isinstance(value, str) else ("", "", "")
    return (folders[first] / rest).as_posix() if slash and first in folders else value
