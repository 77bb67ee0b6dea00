"""From the recipe `recipes/scorer.json` to what the training loop takes: network, dataset folder, loss, weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.training.data import FolderDataset
from ..core.training.loop import Task
from ..core.training.recipe import Recipe, check_keys
from ..core.weights import write_tensors
from .scene import scene_from_json
from .scorer_network import ScorerNetwork
from .scorer_training import loss, make_sample

KIND = "world scorer"
FILE = "scorer.safetensors"


class ScorerSamples(torch.utils.data.Dataset):
    """A dataset folder of the world (layout "shards") as the scorer's samples."""

    def __init__(self, folder: str | Path):
        self.source = FolderDataset(folder, keys=("image", "segmentation"))
        sample = self.source[0]
        lacks = [key for key in ("image", "segmentation") if key not in sample] + ([] if "scene" in self.source.entry(0) else ["scene"])
        if lacks:
            raise ValueError(f"{folder} lacks {', '.join(lacks)}; the scorer trains on shards that `spatialweave world` wrote.")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.source[index]
        return make_sample(sample["image"], sample["segmentation"], scene_from_json(self.source.entry(index)["scene"]))


def build(recipe: Recipe) -> Task:
    """The Task of a recipe whose `data` names a folder of the train split; `scenes` and `size` say how to make it."""
    check_keys(recipe.data, ["folder", "scenes", "size"], "recipe's data")
    check_keys(recipe.model, [], "recipe's model")
    check_keys(recipe.loss, [], "recipe's loss")
    folder = Path(str(recipe.data.get("folder", "")))
    if not (folder / "manifest.jsonl").is_file():
        raise ValueError(
            f"The recipe trains on {folder}, which holds no dataset; make it with: spatialweave world {folder} "
            f"--scenes {recipe.data.get('scenes', 7000)} --size {recipe.data.get('size', 128)} --workers 2"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = ScorerNetwork()
    return Task(model=network, loss=loss, dataset=ScorerSamples(folder), export=export)


def export(folder: Path, state: Mapping[str, Tensor]) -> None:
    """The averaged weights in float16, as they ship."""
    write_tensors(folder / FILE, {name: value.half() for name, value in state.items()}, {}, kind=KIND)
