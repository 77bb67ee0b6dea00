"""The training task of the recipe `recipes/predictor.json`: network, samples, loss, weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...core.training.data import FolderDataset
from ...core.training.loop import Task
from ...core.training.recipe import Recipe
from ...core.training.settings import check_settings
from ...core.weights.files import write_tensors
from ..export.dataset import DATA_KINDS, open_world
from ..export.layout import pack_frames
from ..render import render
from .lifted import sample_lifted
from .predictor_network import PredictorNetwork
from .predictor_training import loss, make_sample

KIND = "world predictor"
FILE = "predictor.safetensors"
READ = ("image", "depth", "normals", "segmentation", "line")  # keys of the dataset's tensors
SEED = 1  # of the lifted scenes, which differ from the folder's
_BATCH = 50


class PredictorSamples(torch.utils.data.Dataset):
    """A dataset folder of the world (layout "shards", with normals), then rendered scenes with a lifted
    solid."""

    def __init__(self, source: FolderDataset, lifted: int = 0):
        self.source = source.needing(*READ, "objects")
        sample = source[0]
        missing = [key for key in READ if key not in sample]
        missing += [] if "objects" in source.entry(0) else ["objects"]
        if missing:
            raise ValueError(
                f"Expected {', '.join((*READ, 'objects'))} in {source.folder}, got no {', '.join(missing)}. "
                "Train the predictor on shards that `spatialweave world --normals` wrote."
            )
        self.lifted = render_lifted(lifted, sample["image"].shape[0], sample["image"].shape[1])

    def __len__(self) -> int:
        return len(self.source) + len(self.lifted)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index < len(self.source):
            return make_sample(self.source[index], self.source.entry(index)["objects"])
        return make_sample(*self.lifted[index - len(self.source)])


def render_lifted(count: int, height: int, width: int) -> list[tuple[dict[str, Tensor], list[str]]]:
    """(tensors as in a dataset's row, names of the objects) of `count` scenes of the train split."""
    scenes = [scene for scene, _ in sample_lifted(SEED, count)]
    found = []
    for start in tqdm(range(0, count, _BATCH), desc="lifting", unit="batch", disable=None):
        part = scenes[start : start + _BATCH]
        packed = pack_frames(render(part, height, width), normals=True, depth_type=torch.float16)
        found += [
            ({key: packed[key][i] for key in READ}, [item.name for item in scene.objects])
            for i, scene in enumerate(part)
        ]
    return found


def build(recipe: Recipe) -> Task:
    """The Task of a recipe whose `data` names a folder of the train split with normals.

    `lifted` is the number of scenes with a lifted solid that are added to it.
    """
    check_settings(recipe.data, {**DATA_KINDS, "lifted": int}, "recipe's data")
    check_settings(recipe.model, {}, "recipe's model")
    check_settings(recipe.loss, {}, "recipe's loss")
    lifted = recipe.data.get("lifted", 0)
    if not isinstance(lifted, int) or lifted < 0:
        raise ValueError(
            f"Expected lifted of the recipe's data to be 0 or more, got {lifted!r}. "
            "Set the number of scenes with a lifted solid."
        )
    samples = PredictorSamples(open_world(recipe.data, keys=READ), lifted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = PredictorNetwork()
    return Task(model=network, loss=loss, dataset=samples, export=export)


def export(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the averaged weights in float16, as they ship."""
    write_tensors(folder / FILE, {name: value.half() for name, value in state.items()}, {}, kind=KIND)
