"""Recipes: what is accepted, what is refused and how, and the learning rate they describe."""

import json
import math

import pytest

from spatialweave.models.core.training.recipe import Recipe, check_keys, learning_rate

LEAST = {"system": "toy", "steps": 10}


def test_recipe_survives_json():
    recipe = Recipe(
        system="toy",
        steps=7,
        lr_scale={"head.": 3.0},
        freeze=("body.",),
        betas=(0.8, 0.9),
        data={"folder": "x"},
        schedule="cosine",
    )
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("steps", 0, "a whole number of at least 1"),
        ("steps", 2.5, "a whole number of at least 1"),
        ("steps", True, "a whole number of at least 1"),
        ("seed", -1, "a whole number of at least 0"),
        ("batch_size", "8", "a whole number of at least 1"),
        ("lr", 0, "a number above 0"),
        ("lr", math.nan, "a number above 0"),
        ("weight_decay", -0.1, "a number of at least 0"),
        ("max_minutes", math.inf, "a number of at least 0"),
        ("ema", 1, "below 1"),
        ("decay", 1.5, "from 0 to 1"),
        ("betas", [0.9], "two numbers"),
        ("betas", [0.9, 1.0], "two numbers"),
        ("schedule", "linear", "one of constant, cosine"),
        ("mixed_precision", "fp16", "one of no, bf16"),
        ("lr_scale", {"head": 0}, "freeze is for 0"),
        ("freeze", "head", "a list of name prefixes"),
        ("muon", [""], "a list of name prefixes"),
        ("stop", 11, "at most the 10 steps"),
        ("data", "folder", "a JSON object"),
        ("accumulate", 3, "a whole number"),
        ("warmup", 11, "at most the 10 steps"),
        ("system", "", "the name of a system"),
        ("preset", 3, "a string"),
    ],
)
def test_recipe_refuses_bad_values_by_name(key, value, wanted):
    if key == "accumulate":
        with pytest.raises(ValueError, match="batch_size to be a multiple of accumulate, 3, got 32"):
            Recipe.from_json(LEAST | {key: value})
        return
    with pytest.raises(ValueError, match=f"Expected the recipe's {key} to be .*{wanted}"):
        Recipe.from_json(LEAST | {key: value})


def test_recipe_refuses_decay_beside_cosine():
    with pytest.raises(ValueError, match="falls by itself"):
        Recipe.from_json(LEAST | {"schedule": "cosine", "decay": 0.2})


def test_unknown_keys_are_refused_with_their_neighbour():
    with pytest.raises(
        ValueError,
        match=r"Expected the keys system, .* got the unknown keys 'batchsize' \(did you mean "
        r"'batch_size'\?\), 'qqq'",
    ):
        Recipe.from_json(LEAST | {"batchsize": 4, "qqq": 1})
    with pytest.raises(
        ValueError,
        match=r"Expected the keys book in the shelf, got the unknown keys 'bok' \(did you mean 'book'\?\)",
    ):
        check_keys({"bok": 1}, ["book"], "shelf")


def test_missing_keys_and_foreign_json_are_named():
    with pytest.raises(ValueError, match="Expected system and steps in the recipe, got none"):
        Recipe.from_json({})
    with pytest.raises(ValueError, match="Expected a JSON object as the recipe, got a list"):
        Recipe.from_json([1])


def test_recipe_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"Expected to read the recipe .*none\.json, got an error"):
        Recipe.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="Expected JSON in .*bad.json, got text that is not JSON in line 1"):
        Recipe.read(tmp_path / "bad.json")


def test_constant_schedule_warms_up_holds_and_decays():
    recipe = Recipe(system="toy", steps=100, lr=2.0, warmup=9, decay=0.2, final_lr=0.1)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[8] == pytest.approx(1.8)
    assert rates[9:81] == [2.0] * 72
    assert rates[90] == pytest.approx((2.0 + 0.2) / 2)
    assert learning_rate(recipe, 100) == pytest.approx(0.2)


def test_cosine_schedule_halves_in_the_middle():
    recipe = Recipe(system="toy", steps=110, lr=1.0, warmup=10, schedule="cosine", final_lr=0.2)
    assert learning_rate(recipe, 10) == 1.0
    assert learning_rate(recipe, 60) == pytest.approx(0.6)
    assert learning_rate(recipe, 110) == pytest.approx(0.2)
