"""A dataset on the device: the batches that a loader would give, and so the same run."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatialweave.models.core.training import resident
from spatialweave.models.core.training.data import collate
from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.core.training.resident import Constants, ResidentDataset

CPU = torch.device("cpu")
SCRIPT = Path(__file__).with_name("inside_training.py")
_spec = importlib.util.spec_from_file_location("inside_training", SCRIPT)
inside_training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inside_training)
RECIPE = Recipe(system="toy", steps=3, batch_size=8, accumulate=2, lr=1e-2, ema=0.9, log_every=1)


class Mixed(torch.utils.data.Dataset):
    """Tensors of several types and a string."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        x = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return {"x": x, "half": x.half(), "known": x > 0, "caption": f"scene {index}"}


class Sizes(Mixed):
    """The last samples are larger."""

    def __getitem__(self, index):
        return {"x": torch.zeros(4 if index < 20 else 5)}


class Whole(Mixed):
    """A dataset in memory, which gives batches."""

    def __getitems__(self, indices):
        return collate([self[index] for index in indices])


@pytest.mark.parametrize("source", [Mixed(), Whole()], ids=["samples", "batches"])
def test_batches_are_those_of_the_loader(source, monkeypatch):
    monkeypatch.setattr(resident, "READ", 10)  # the last reading is shorter
    held, rows = ResidentDataset(source, CPU), [3, 22, 0, 3, 11]
    expected, got = collate([source[i] for i in rows]), collate(held.__getitems__(rows))
    assert len(held) == 23 and got.keys() == expected.keys() and got["caption"] == expected["caption"]
    for name in ("x", "half", "known"):
        assert got[name].dtype == expected[name].dtype and torch.equal(got[name], expected[name])
    assert torch.equal(held[5]["x"], source[5]["x"]) and held[5]["caption"] == "scene 5"


def test_what_cannot_be_stacked_is_refused(monkeypatch):
    monkeypatch.setattr(resident, "READ", 10)
    with pytest.raises(ValueError, match=r"one size .*, got x \(1, 4\) and x \(1, 5\) from sample 20 on"):
        ResidentDataset(Sizes(), CPU)
    with pytest.raises(ValueError, match="batches of its own. Leave resident out"):
        ResidentDataset(Mixed(), CPU, lambda samples: samples)


def test_a_dataset_larger_than_the_card_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
    batch = {"x": torch.zeros(2, 256, dtype=torch.float32), "caption": ["a", "b"]}
    resident.check_room(batch, 800_000, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"room for the dataset's 1.0 GiB .* got 1.0 GiB free. Leave"):
        resident.check_room(batch, 1_050_000, torch.device("cuda"))


def test_a_resident_run_is_the_same_run(tmp_path):
    pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
    runs = {
        name: run_recipe(recipe, {"toy": inside_training.build_toy}, output=tmp_path / name)
        for name, recipe in (("loader", RECIPE), ("resident", replace(RECIPE, resident=True)))
    }
    for group in ("model", "ema", "optimizer"):
        one, other = (load_file(run.checkpoint / f"{group}.safetensors") for run in runs.values())
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    more = replace(RECIPE, steps=4)
    assert run_recipe(
        more, {"toy": inside_training.build_toy}, output=tmp_path / "resident", resume=True
    ).step == 4, "a run may become resident, or cease to be"


def test_constants_are_given_to_the_loss_and_move_with_it():
    constants = Constants({"empty": torch.zeros(3), "other": torch.ones(2)})
    loss = constants.bind(lambda model, batch, generator, empty, other: (model, empty, other))
    assert torch.equal(loss(1, 2, 3)[1], torch.zeros(3))
    constants.to(torch.float64)
    assert loss(1, 2, 3)[2].dtype == torch.float64
    assert constants.bind(lambda *given, extra: extra, "extra")(1, 2, 3).keys() == {"empty", "other"}
