"""Checkpoints: whole or not at all, and what damaged ones are called."""

import json

import pytest
import torch

from spatialweave.models.core.training.checkpoint import (
    find_latest,
    load_checkpoint,
    load_model,
    save_checkpoint,
)

GROUPS = {
    "model": {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(3, dtype=torch.int64)},
    "ema": {},
}


def test_checkpoint_round_trip(tmp_path):
    folder = save_checkpoint(tmp_path, 12, GROUPS, {"note": "x"}, keep=1)
    assert find_latest(tmp_path) == folder == tmp_path / "step-00000012"
    groups, state = load_checkpoint(folder, ("model", "ema"))
    assert state == {"step": 12, "note": "x"} and groups["ema"] == {}
    assert (
        torch.equal(groups["model"]["a"], GROUPS["model"]["a"]) and groups["model"]["b"].dtype == torch.int64
    )
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}


def test_nothing_saved_is_none(tmp_path):
    assert find_latest(tmp_path) is None


def test_failed_save_leaves_the_old_state(tmp_path):
    old = save_checkpoint(tmp_path, 1, GROUPS, {}, keep=1)
    with pytest.raises(
        OSError,
        match="Expected room for the checkpoint .*step-00000002, got an error while writing it: .*Free "
        "some space or choose another output folder",
    ):
        save_checkpoint(tmp_path, 2, {**GROUPS, "no/such/folder": {}}, {}, keep=1)
    assert find_latest(tmp_path) == old and sorted(p.name for p in tmp_path.iterdir()) == [
        "latest.json",
        "step-00000001",
    ]


def test_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, 1, GROUPS, {"n": 1}, keep=2)
    folder = save_checkpoint(tmp_path, 1, GROUPS, {"n": 2}, keep=2)
    assert json.loads((folder / "state.json").read_text())["n"] == 2


def test_damaged_checkpoints_are_said_in_a_sentence(tmp_path):
    folder = save_checkpoint(tmp_path, 1, GROUPS, {}, keep=1)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(
        ValueError,
        match="Expected .*model.safetensors to be readable, got a damaged or missing file .*. Use an "
        "older checkpoint",
    ):
        load_checkpoint(folder, ("model",))
    (folder / "state.json").write_text("{")
    with pytest.raises(
        ValueError,
        match=r"Expected .*state\.json to be readable, got a damaged or missing file \(Expected JSON in "
        r".*state\.json",
    ):
        load_checkpoint(folder, ())
    (folder / "state.json").unlink()
    with pytest.raises(
        ValueError, match="Expected state.json in the checkpoint step-00000001, which .* names, got none"
    ):
        find_latest(tmp_path)


def test_weights_of_another_model_are_named():
    model = torch.nn.Module()
    model.weight, model.bias = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 2), (3,)))
    with pytest.raises(
        ValueError,
        match=r"Expected the tensors of this model in here, got 1 missing \(first bias\), 1 unknown "
        r"\(first b\), 1 of another shape \(first weight\)",
    ):
        load_model(model, {"weight": torch.zeros(2, 2), "b": torch.zeros(1)}, "here")
