"""From the recipe `recipes/predictor.json` to what the training loop takes: network, samples, loss, weights file."""

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
READ = ("image", "depth", "normals", "segmentation", "line")  # of a dataset's tensors
SEED = 1  # of the lifted scenes: others than the folder's
_BATCH = 50


class PredictorSamples(torch.utils.data.Dataset):
    """A dataset folder of the world (layout "shards", with normals), then scenes in which one thing hangs in the air, rendered here."""

    def __init__(self, source: FolderDataset, lifted: int = 0):
        self.source = source.needing(*READ, "objects")
        sample = source[0]
        lacks = [key for key in READ if key not in sample] + ([] if "objects" in source.entry(0) else ["objects"])
        if lacks:
            raise ValueError(
                f"{source.folder} lacks {', '.join(lacks)}; the predictor trains on shards that `spatialweave world --normals` wrote."
            )
        self.lifted = render_lifted(lifted, sample["image"].shape[0], sample["image"].shape[1])

    def __len__(self) -> int:
        return len(self.source) + len(self.lifted)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index < len(self.source):
            return make_sample(self.source[index], self.source.entry(index)["objects"])
        return make_sample(*self.lifted[index - len(self.source)])


def render_lifted(count: int, height: int, width: int) -> list[tuple[dict[str, Tensor], list[str]]]:
    """(tensors as a dataset's row has them, the objects' names) of `count` scenes of the train split."""
    scenes = [scene for scene, _ in sample_lifted(SEED, count)]
    found = []
    for start in tqdm(range(0, count, _BATCH), desc="lifting", unit="batch", disable=None):
        part = scenes[start : start + _BATCH]
        packed = pack_frames(render(part, height, width), normals=True, depth_type=torch.float16)
        found += [({key: packed[key][i] for key in READ}, [item.name for item in scene.objects]) for i, scene in enumerate(part)]
    return found


def build(recipe: Recipe) -> Task:
    """The Task of a recipe whose `data` names a folder of the train split with normals; `lifted` is the number of scenes added to it."""
    check_settings(recipe.data, {**DATA_KINDS, "lifted": int}, "recipe's data")
    check_settings(recipe.model, {}, "recipe's model")
    check_settings(recipe.loss, {}, "recipe's loss")
    lifted = recipe.data.get("lifted", 0)
    if not isinstance(lifted, int) or lifted < 0:
        raise ValueError(f"The recipe's data has lifted {lifted!r}; give the number of scenes with a thing in the air, 0 for none.")
    samples = PredictorSamples(open_world(recipe.data, keys=READ), lifted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = PredictorNetwork()
    return Task(model=network, loss=loss, dataset=samples, export=export)


def export(folder: Path, state: Mapping[str, Tensor]) -> None:
    """The averaged weights in float16."""
    write_tensors(folder / FILE, {name: value.half() for name, value in state.items()}, {}, kind=KIND)
