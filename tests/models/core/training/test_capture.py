"""The captured pass without a card: what surrounds the graph, and what is refused. The graph itself is
torch's."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatialweave.models.core.training import loop
from spatialweave.models.core.training.capture import CapturedPass
from spatialweave.models.core.training.draws import seed_draws, seed_slice
from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
SCRIPT = Path(__file__).with_name("inside_training.py")
_spec = importlib.util.spec_from_file_location("inside_training", SCRIPT)
inside_training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inside_training)
RECIPE = Recipe(
    system="toy", steps=4, batch_size=8, lr=1e-2, ema=0.9, log_every=1, resident=True, device_noise=True
)


def record_on_cpu(run, generator):
    """As `record_graph`: a replay computes what was recorded into the same tensors, gradients included, and
    adds to none."""
    for _ in range(3):
        loss, logs = run()
    holder = run.__self__
    gradients = [parameter.grad for parameter in holder.parameters]

    def replay():
        again, logged = run()
        loss.copy_(again)
        for name, value in logged.items():
            logs[name].copy_(value)
        for parameter, kept in zip(holder.parameters, gradients, strict=True):
            if kept is not None:
                kept.copy_(parameter.grad)
            parameter.grad = kept

    return (loss, logs), replay


def build(recipe):
    task = inside_training.build_toy(recipe)
    return replace(task, draws_there=True, captures=True)


def run(recipe, output):
    outcome = run_recipe(recipe, {"toy": build}, output=output)
    groups = ("model", "ema", "optimizer")
    return {group: load_file(outcome.checkpoint / f"{group}.safetensors") for group in groups}, outcome.loss


def test_a_captured_run_takes_the_steps_of_an_eager_one(tmp_path, monkeypatch):
    eager, loss = run(RECIPE, tmp_path / "eager")
    monkeypatch.setattr(loop, "record_graph", record_on_cpu)
    monkeypatch.setattr(loop, "check_abilities", lambda *given: None)
    captured, last = run(replace(RECIPE, capture=True), tmp_path / "captured")
    assert last == loss
    for group, tensors in eager.items():
        assert captured[group].keys() == tensors.keys()
        assert all(torch.equal(captured[group][name], value) for name, value in tensors.items())


def test_what_a_pass_gives_is_not_overwritten_by_the_next():
    weight = torch.nn.Parameter(torch.ones(3))

    def run_pass(batch):
        loss = (weight * batch["x"]).sum()
        loss.backward()
        return loss, {"loss": loss.detach()}

    captured = CapturedPass(run_pass, [weight], torch.Generator(), record_on_cpu)
    one = captured({"x": torch.ones(3), "caption": ["a"]}, 1)
    other = captured({"x": 2 * torch.ones(3), "caption": ["b"]}, 2)
    assert (one[0].item(), one[1]["loss"].item(), other[0].item()) == (3, 3, 6)
    assert torch.equal(weight.grad, 2 * torch.ones(3)), "not the sum of both"


def test_a_generator_that_is_kept_draws_as_a_new_one():
    kept = torch.Generator()
    torch.randn(5, generator=kept)
    drawn = [torch.randn(7, generator=seed_draws(11, kept)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(*(torch.randn(7, generator=seed_slice(0, step, 0)) for step in range(2)))


def test_capture_is_refused_without_a_card(tmp_path):
    with pytest.raises(ValueError, match="one process on a CUDA card for the recipe's capture, got 1 on cpu"):
        run(replace(RECIPE, capture=True), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"resident": False}, {"device_noise": False}, {"accumulate": 2}, {"workers": 1}]
)
def test_capture_needs_what_lies_on_the_device(changes):
    with pytest.raises(ValueError, match="capture to be false without resident and device_noise, with"):
        replace(RECIPE, capture=True, **changes)


@pytest.mark.parametrize("key", ["device_noise", "capture"])
def test_a_loss_that_is_not_written_for_it_is_refused(tmp_path, key):
    recipe = replace(RECIPE, device_noise=True, capture=key == "capture")

    def unable(recipe):
        return replace(build(recipe), draws_there=key != "device_noise", captures=False)

    with pytest.raises(ValueError, match=f"Expected no {key} in a recipe of toy, whose loss is not written"):
        run_recipe(recipe, {"toy": unable}, output=tmp_path)


@pytest.mark.parametrize("key", ["resident", "device_noise", "capture"])
def test_switches_are_true_or_false(key):
    with pytest.raises(ValueError, match=f"{key} to be true or false, got 1"):
        Recipe(system="toy", steps=1, **{key: 1})
