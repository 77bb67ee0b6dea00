"""A run that is told how long it may take: in time, by a recipe that is written; timing leaves no trace."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatialweave.models.core.training import fit
from spatialweave.models.core.training.fit import plan, stretch
from spatialweave.models.core.training.recipe import Recipe, learning_rate

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
SCRIPT = Path(__file__).with_name("inside_training.py")
_spec = importlib.util.spec_from_file_location("inside_training", SCRIPT)
inside_training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inside_training)
RECIPE = Recipe(
    system="toy", steps=100_000, batch_size=8, lr=1e-2, warmup=5000, schedule="cosine", ema=0.9,
    save_every=20_000, log_every=5000,
)  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    return inside_training.Clock(monkeypatch)


def read_tensors_of(outcome):
    groups = ("model", "ema", "optimizer")
    return {group: load_file(outcome.checkpoint / f"{group}.safetensors") for group in groups}


def assert_equal(actual, expected):
    for group, tensors in expected.items():
        assert tensors and actual[group].keys() == tensors.keys()
        assert all(torch.equal(actual[group][name], value) for name, value in tensors.items())


def test_a_fitted_run_finishes_its_schedule_in_time(clock, tmp_path):
    outcome = clock.run(replace(RECIPE, fit_minutes=0.5), tmp_path)
    written = Recipe.read(tmp_path / "recipe.json")
    assert outcome.ending == "finished" and outcome.step == written.steps
    assert 0.9 * 30 < clock.now - 100 <= fit.PLANNED * 30 + 1e-6, "most of the time is used, and no more"
    assert written.fit_minutes == 0 and written.warmup == round(0.05 * written.steps)
    assert learning_rate(written, written.steps) == pytest.approx(0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest.json", "log.jsonl", "loss.png", "recipe.json", "sources.json", outcome.checkpoint.name,
    ]  # fmt: skip


def test_the_written_recipe_gives_the_same_weights(clock, tmp_path):
    outcome = clock.run(replace(RECIPE, fit_minutes=0.3), tmp_path / "fitted")
    again = clock.run(Recipe.read(tmp_path / "fitted" / "recipe.json"), tmp_path / "again")
    assert_equal(read_tensors_of(again), read_tensors_of(outcome))


def test_a_fitted_run_resumes_with_its_schedule_bit_for_bit(clock, tmp_path):
    whole = clock.run(replace(RECIPE, fit_minutes=0.3), tmp_path / "whole")
    recipe = Recipe.read(tmp_path / "whole" / "recipe.json")
    first = clock.run(replace(recipe, max_minutes=0.1), tmp_path / "halves")
    assert first.ending == "time" and 0 < first.step < recipe.steps
    resumed = clock.run(replace(RECIPE, fit_minutes=5.0), tmp_path / "halves", resume=True)
    assert resumed.step == recipe.steps
    assert_equal(read_tensors_of(resumed), read_tensors_of(whole))


def test_a_run_that_became_slower_stops_in_time_and_can_go_on(clock, tmp_path):
    clock.slow = {"after": 60}
    outcome = clock.run(replace(RECIPE, fit_minutes=0.5), tmp_path)
    assert outcome.ending == "time" and clock.now - 100 < fit.ENDED * 30 + 2 + 1.5
    stored = json.loads((outcome.checkpoint / "state.json").read_text())["recipe"]
    assert outcome.step < stored["steps"]
    clock.slow = {}
    resumed = clock.run(replace(RECIPE, fit_minutes=5.0), tmp_path, resume=True)
    assert (resumed.ending, resumed.step) == ("finished", stored["steps"])


def test_a_schedule_is_stretched_as_a_whole():
    staged = replace(RECIPE, steps=3000, stop=750, warmup=100, save_every=250, log_every=50)
    longer = stretch(staged, 1500)
    assert (longer.steps, longer.stop, longer.warmup) == (6000, 1500, 200)
    assert (longer.save_every, longer.log_every) == (500, 100)
    for share in (0.02, 0.1, 0.2, 0.25):
        step = int(share * staged.steps)
        assert learning_rate(longer, 2 * step) == pytest.approx(learning_rate(staged, step), rel=0.02)
    assert stretch(staged, 1).warmup <= stretch(staged, 1).steps == 4


def test_a_plan_leaves_room_for_saving():
    planned = plan(replace(RECIPE, steps=1000, save_every=100, warmup=0), left=600.0, step=0.1, save=6.0)
    assert planned.steps == 5400  # ten saves of six seconds
    assert planned.save_every == 600 and planned.log_every >= 50
    assert math.ceil(planned.steps / planned.save_every) * 6.0 + planned.steps * 0.1 <= 600


def test_too_little_time_is_still_a_run():
    assert plan(replace(RECIPE, warmup=10), left=-5.0, step=0.1, save=6.0).steps == 1


def test_two_limits_are_refused():
    with pytest.raises(ValueError, match="max_minutes to be 0 beside fit_minutes"):
        replace(RECIPE, fit_minutes=1.0, max_minutes=1.0)
