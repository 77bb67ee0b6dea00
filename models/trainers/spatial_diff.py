"""Training of SpatialDiff's tiny editor on the world's edits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.training.data import FolderDataset
from ..core.training.loop import Task
from ..core.training.recipe import Recipe
from ..core.training.settings import check_settings
from ..spatial_diff.data.triples import Triple
from ..spatial_diff.training.editor import NEEDS, build_editor
from .world_samples import CELL_CLASSES, label_cells

CELLS = "cells"


def label_targets(triples: Sequence[Triple]) -> dict[str, Tensor]:
    """`cells` (b, 2, h / 4, w / 4): shape and color of each cell of the targets, for the world's edits."""
    cells = []
    for each in triples:
        if "target_segmentation" not in (each.maps or {}) or not (each.entry or {}).get("objects"):
            raise ValueError(
                "Expected edits with target_segmentation and objects, got others. Write the folder with: "
                "spatialweave world --kind moves"
            )
        cells.append(label_cells(each.maps["target_segmentation"], each.entry["objects"]))
    return {CELLS: torch.stack(cells)}


def build_tiny_editor(recipe: Recipe) -> Task:
    """The Task of the system `tiny_editor`. `data.folder` is that of `spatialweave spatial_diff encode`."""
    check_settings(recipe.data, {"folder": str}, "recipe's data")
    if not recipe.data.get("folder"):
        raise ValueError(
            "Expected a folder in the recipe's data, got none. Write one with: spatialweave spatial_diff "
            "encode"
        )
    keys = (*NEEDS, CELLS)
    return build_editor(
        recipe, dataset=FolderDataset(recipe.data["folder"], keys=keys, needs=keys), classes=CELL_CLASSES
    )
