"""Stage 2 of SpatialFusion: spatial transformer, depth adapter and LoRA, on an adapter's encoded folder.

The parts start from stage 1 and from an adapter that trained alone, or from another folder's run of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.training.loop import Task
from ..core.training.recipe import Recipe
from ..core.training.settings import read_settings
from ..spatial_fusion.joint_training import JointLoss, build_joint_task
from ..spatial_fusion.training import AdapterLoss, SpatialDepthLoss
from .depth_latents import DepthLatentsRequest
from .spatial_fusion import build_depth_adapter
from .spatial_transformer import build_spatial_transformer


@dataclass(frozen=True)
class JointParts:
    """The `model` part of a recipe: those of the recipes of both parts."""

    adapter: Mapping[str, Any] = field(default_factory=dict)
    transformer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JointLossParts:
    """The `loss` part of a recipe: those of the recipes of both parts, and lambda."""

    image: Mapping[str, Any] = field(default_factory=dict)
    depth: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 0.5


def build_spatial_fusion(recipe: Recipe) -> Task:
    """The Task of the system `spatial_fusion`. Samples that its data folder lacks are encoded first."""
    request = read_settings(DepthLatentsRequest, recipe.data, "recipe's data")
    parts = read_settings(JointParts, recipe.model, "recipe's model")
    losses = read_settings(JointLossParts, recipe.loss, "recipe's loss")
    if request.references:
        raise ValueError(
            f"Expected no references in the data of a recipe of spatial_fusion, got {request.references}. "
            "Train edits with the parts' own recipes."
        )
    settings = JointLoss(
        read_settings(AdapterLoss, losses.image, "recipe's loss.image"),
        read_settings(SpatialDepthLoss, losses.depth, "recipe's loss.depth"), losses.weight,
    )  # fmt: skip
    adapter = build_depth_adapter(replace(recipe, model=parts.adapter, loss=losses.image))
    data = {"folder": request.folder, "captions": request.captions}
    spatial = build_spatial_transformer(
        replace(recipe, model=parts.transformer, loss=losses.depth, data=data)
    )
    check_caption_texts(spatial.dataset.source, request)
    return build_joint_task(
        adapter=adapter, spatial=spatial, base=adapter.loss.keywords["base"],
        empty=adapter.loss.keywords["empty"], read=spatial.loss.keywords["read"], settings=settings,
    )  # fmt: skip


def check_caption_texts(samples: Any, request: DepthLatentsRequest) -> None:
    """ValueError for a folder that was encoded without the texts of all captions of its prompt tensors."""
    if request.captions == 1:
        return
    lost = next((i for i in range(len(samples)) if "captions" not in samples.entry(i)), None)
    if lost is not None:
        raise ValueError(
            f"{samples.where(lost)}: Expected the texts of its {request.captions} captions, got one. Encode "
            "the data into a new folder."
        )
