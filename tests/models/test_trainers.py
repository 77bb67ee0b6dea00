"""The recipes that ship, and the builders that they name."""

import json
from pathlib import Path

import pytest
import torch

import spatialweave
from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.weights import read_header
from spatialweave.models.demo.weights import load_codec
from spatialweave.models.trainers import BUILDERS
from spatialweave.models.world.dataset import export_dataset

ROOT = Path(spatialweave.__file__).parent
RECIPES = sorted(ROOT.glob("models/*/recipes/*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_has_a_builder(path):
    assert Recipe.read(path).system in BUILDERS


def shorten(name, tmp_path, **changes):
    values = json.loads(next(path for path in RECIPES if path.stem == name).read_text())
    data = values["data"] | {"folder": str(tmp_path / "world")}
    short = {"data": data, "steps": 2, "stop": 0, "warmup": 0, "batch_size": 4, "output": str(tmp_path / name)}
    return Recipe.from_json(values | short | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainers")
    export_dataset(folder / "world", count=6, size=32, seed=0, split="train")
    return folder


def test_codec_recipe_trains_and_writes_a_codec_that_loads(folder):
    run_recipe(shorten("codec", folder, mixed_precision="no"), BUILDERS)
    codec = load_codec(folder / "codec" / "codec.safetensors")
    assert codec.decode(codec.encode(torch.zeros(1, 3, 32, 32))).shape == (1, 3, 32, 32)
    assert (codec.latent_std != 1).any()


def test_tiny_recipes_follow_one_another(folder):
    """Each of the four stages goes on from the weights of the one before, as its recipe says."""
    stages = [path.stem for path in RECIPES if path.stem.startswith("tiny_")]
    assert len(stages) == 4
    for number, stage in enumerate(stages, start=1):
        whole = json.loads(next(path for path in RECIPES if path.stem == stage).read_text())
        model = {key: value.replace("runs/", f"{folder}/") for key, value in whole["model"].items()}
        outcome = run_recipe(shorten(stage, folder, model=model, output=whole["output"].replace("runs/", f"{folder}/")), BUILDERS)
        assert outcome.ending == "finished"
        for name in ("network.safetensors", "text.safetensors"):  # what ships is half as large as what trains
            kind = {"F16"} if number in (2, 4) else {"F32"}
            assert set(read_header(folder / f"tiny_{number}" / name).dtypes.values()) == kind


def test_an_unknown_shipping_precision_is_refused(folder):
    with pytest.raises(ValueError, match="'int3'; it is one of float32, float16"):
        run_recipe(shorten("tiny_1_text_to_image", folder, model={"ship": "int3"}, output=str(folder / "refused")), BUILDERS)
