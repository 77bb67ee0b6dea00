"""Every wrong type in a recipe is one sentence with its key, in the recipe itself and in the parts that
belong to the systems.
"""

import json
from dataclasses import fields
from typing import get_type_hints

import pytest

from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.training.settings import as_size, check_settings, fits, read_settings
from spatialweave.models.intrinsic_ldm.training.base import BaseLoss, ImageVaeLoss
from spatialweave.models.intrinsic_ldm.training.lora import LoraLoss, LoraSettings
from spatialweave.models.intrinsic_ldm.training.vae import VaeLoss, VaeSettings
from spatialweave.models.modality_forcing.training.loss import LossSettings
from spatialweave.models.modality_forcing.training.task import ModelSettings
from spatialweave.models.tiny.codec_training import CodecLoss
from spatialweave.models.trainers.builders import BUILDERS

VALUES = [
    "text",
    5,
    -1,
    0.5,
    float("nan"),
    float("inf"),
    10**400,
    True,
    None,
    [],
    [1, 2],
    ["a"],
    {},
    {"a": 1},
    "\udcff",
]
KINDS = [
    CodecLoss,
    BaseLoss,
    ImageVaeLoss,
    LoraLoss,
    LoraSettings,
    VaeLoss,
    VaeSettings,
    LossSettings,
    ModelSettings,
]
FIELDS = [(kind, field.name) for kind in KINDS for field in fields(kind)]


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_a_recipes_own_settings_are_read_or_refused_by_name(tmp_path, name):
    path = tmp_path / "recipe.json"
    for value in VALUES:
        path.write_text(json.dumps({"system": "scorer", "steps": 10, name: value}))
        try:
            assert getattr(Recipe.read(path), name) is not None
        except ValueError as error:
            assert name in str(error) and "recipe.json" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{kind.__name__}.{name}" for kind, name in FIELDS])
def test_the_parts_settings_are_read_or_refused_by_name(kind, name):
    start = {"base": "folder"} if kind is LoraSettings else {}
    for value in VALUES:
        try:
            assert isinstance(read_settings(kind, {**start, name: value}, "recipe's part"), kind)
        except ValueError as error:
            assert name in str(error) and "\n" not in str(error)
            continue
        assert fits(value, get_type_hints(kind)[name])


NEED_BASE = ("intrinsic_lora", "joyai_lora", "spatial_diff")


@pytest.mark.parametrize("system", BUILDERS)
@pytest.mark.parametrize("data", [{"folder": 5}, {"folder": ["a"]}, {"folder": None}, {"foldr": "a"}])
def test_every_trainer_refuses_data_of_the_wrong_type_by_its_key(system, data):
    start = {"model": {"base": "nowhere"}} if system in NEED_BASE else {}
    start |= {"preset": "sd21"} if system == "intrinsic_lora" else {}
    with pytest.raises(
        ValueError,
        match="(folder|vae) of the recipe's data, got|in the recipe's data, got the unknown keys 'foldr'",
    ):
        BUILDERS[system](Recipe(system, 1, data=data, **start))


@pytest.mark.parametrize(
    "system",
    ["scorer", "predictor", "tiny_codec", "tiny_image_vae", "tiny_modality_forcing", "intrinsic_vae"],
)
@pytest.mark.parametrize("size", ["32", [32], 32.5, True, {"height": 32}, [32, "32"]])
def test_every_size_is_one_number_or_two(system, size):
    with pytest.raises(
        ValueError, match=r"Expected a whole number or a list of 2, each .* as size of the recipe's data, got"
    ):
        BUILDERS[system](Recipe(system, 1, data={"folder": "nowhere", "size": size}))


@pytest.mark.parametrize("size", [64, [64, 64], [64, 32]])
def test_the_command_that_makes_a_missing_folder_takes_its_size(size):
    with pytest.raises(ValueError, match="--size 64 --workers"):
        BUILDERS["scorer"](Recipe("scorer", 1, data={"folder": "nowhere", "size": size}))


def test_one_number_is_both_sides():
    assert as_size(32) == as_size([32, 32]) == as_size((32, 32)) == (32, 32) and as_size(None) is None


@pytest.mark.parametrize("values", [[], "text", 5, None])
def test_a_part_is_an_object(values):
    with pytest.raises(ValueError, match="Expected a JSON object as the recipe's loss, got"):
        check_settings(values, {"a": int}, "recipe's loss")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_recipe_as_any_editor_saves_it(tmp_path, encoding):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"system": "scorer", "steps": 10}), encoding=encoding)
    assert Recipe.read(path).steps == 10


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("é".encode("cp1252"), "byte 0xe9 in line 1"), ('{"a": "é"}'.encode("utf-16"), "got UTF-16"),
        (b"[1]", "Expected a JSON object in"),
        (b"[" * 100_000, "nested too deeply"), (b'{"steps": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"", "not JSON"),
    ],
)  # fmt: skip
def test_recipe_files_that_are_none_are_named(tmp_path, data, words):
    path = tmp_path / "recipe.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="recipe.json") as error:
        Recipe.read(path)
    assert words in str(error.value)
