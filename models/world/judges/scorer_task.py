"""The training task of the recipe `recipes/scorer.json`: network, dataset folder, loss, weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...core.training.data import FolderDataset
from ...core.training.loop import Task
from ...core.training.recipe import Recipe
from ...core.training.settings import check_settings
from ...core.weights.files import write_tensors
from ..export.dataset import DATA_KINDS, open_world
from ..scene import scene_from_json
from .scorer_network import ScorerNetwork
from .scorer_training import loss, make_sample

KIND = "world scorer"
FILE = "scorer.safetensors"
READ = ("image", "segmentation")  # keys of the dataset's tensors


class ScorerSamples(torch.utils.data.Dataset):
    """A dataset folder of the world (layout "shards") as the scorer's samples."""

    def __init__(self, source: FolderDataset):
        self.source = source.needing(*READ, "scene")
        sample = source[0]
        missing = [key for key in READ if key not in sample]
        missing += [] if "scene" in source.entry(0) else ["scene"]
        if missing:
            raise ValueError(
                f"Expected {', '.join((*READ, 'scene'))} in {source.folder}, got no {', '.join(missing)}. "
                "Train the scorer on shards that `spatialweave world` wrote."
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.source[index]
        return make_sample(
            sample["image"], sample["segmentation"], scene_from_json(self.source.entry(index)["scene"])
        )


def build(recipe: Recipe) -> Task:
    """The Task of a recipe whose `data` names a folder of the train split; an error says how to write a
    missing one."""
    check_settings(recipe.data, DATA_KINDS, "recipe's data")
    check_settings(recipe.model, {}, "recipe's model")
    check_settings(recipe.loss, {}, "recipe's loss")
    samples = ScorerSamples(open_world(recipe.data, keys=READ))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = ScorerNetwork()
    return Task(model=network, loss=loss, dataset=samples, export=export)


def export(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the averaged weights in float16, as they ship."""
    write_tensors(folder / FILE, {name: value.half() for name, value in state.items()}, {}, kind=KIND)
