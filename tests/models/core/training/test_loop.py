"""The loop: against the same steps written out in plain torch, resumed, interrupted, in several processes."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.training.data import FolderDataset, OrderedBatches, collate
from spatialweave.models.core.training.draws import seed_slice
from spatialweave.models.core.training.loop import Outcome, run_recipe
from spatialweave.models.core.training.recipe import Recipe, learning_rate

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
GROUPS = ("model", "ema", "optimizer")
RECIPE = Recipe(
    system="toy",
    steps=6,
    batch_size=8,
    accumulate=2,
    lr=1e-2,
    warmup=2,
    ema=0.9,
    weight_decay=0.1,
    save_every=100,
    log_every=2,
)
SCRIPT = Path(__file__).with_name("inside_training.py")
_spec = importlib.util.spec_from_file_location("inside_training", SCRIPT)
inside_training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inside_training)
build_toy = inside_training.build_toy
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")


def run(recipe, output, **options) -> Outcome:
    return run_recipe(recipe, {"toy": build_toy}, output=output, **options)


def tensors(outcome):
    return {group: load_file(outcome.checkpoint / f"{group}.safetensors") for group in GROUPS}


def assert_same(actual, expected):
    for group in GROUPS:
        assert actual[group].keys() == expected[group].keys() and actual[group]
        assert all(torch.equal(value, expected[group][name]) for name, value in actual[group].items())


def train_by_hand(recipe):
    """The same run in the fewest words: torch's own AdamW, clipping and a moving average."""
    task = build_toy(recipe)
    model = task.model
    matrices, rest = (
        [p for p in model.parameters() if p.ndim > 1],
        [p for p in model.parameters() if p.ndim < 2],
    )
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=recipe.betas, foreach=False)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    order = iter(OrderedBatches(len(task.dataset), recipe.batch_size, recipe.seed, slices=recipe.accumulate))
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        for part in range(recipe.accumulate):
            batch = collate([task.dataset[i] for i in next(order)])
            (task.loss(model, batch, seed_slice(recipe.seed, step, part))[0] / recipe.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        average = {
            name: decay * average[name] + (1 - decay) * p.detach() for name, p in model.named_parameters()
        }
    return model.state_dict(), average


def test_loop_does_the_steps_written_out_by_hand(tmp_path):
    model, average = train_by_hand(RECIPE)
    got = tensors(run(RECIPE, tmp_path))
    assert got["model"].keys() == model.keys() and got["ema"].keys() == average.keys()
    for name in model:
        assert_close(got["model"][name], model[name])
    for name in average:
        assert_close(got["ema"][name], average[name])
    assert not any(key.startswith("unused") for key in got["optimizer"])


def test_resumed_run_is_bit_exact(tmp_path):
    straight = run(RECIPE, tmp_path / "straight")
    run(replace(RECIPE, steps=3, warmup=2), tmp_path / "halves")
    resumed = run(RECIPE, tmp_path / "halves", resume=True)
    assert resumed.step == 6
    assert_same(tensors(resumed), tensors(straight))
    assert resumed.loss == straight.loss


def test_workers_change_nothing(tmp_path):
    recipe = replace(RECIPE, steps=2, warmup=0)
    numbers = build_toy(recipe).dataset
    save_file(
        {"x": torch.stack([numbers[i]["x"] for i in range(len(numbers))])}, tmp_path / "shard.safetensors"
    )
    lines = [json.dumps({"shard": "shard.safetensors", "row": i}) for i in range(len(numbers))]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))

    def build(recipe):
        return replace(build_toy(recipe), dataset=FolderDataset(tmp_path))

    alone = run_recipe(recipe, {"toy": build}, output=tmp_path / "alone")
    helped = run_recipe(replace(recipe, workers=1), {"toy": build}, output=tmp_path / "helped")
    assert_same(tensors(helped), tensors(alone))


def test_log_has_a_line_per_interval_and_a_plot(tmp_path):
    logged = []
    outcome = run(RECIPE, tmp_path, on_log=logged.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == logged and [line["step"] for line in lines] == [2, 4, 6]
    assert set(lines[0]) == {"step", "loss", "square", "grad_norm", "lr", "seconds_per_step"}
    assert outcome.loss == lines[-1]["loss"]
    assert Image.open(tmp_path / "loss.png").size == (960, 540)
    assert json.loads((tmp_path / "recipe.json").read_text())["output"] == str(tmp_path)


def test_resumed_log_has_no_step_twice(tmp_path):
    recipe = replace(RECIPE, steps=5, log_every=1, save_every=2)
    run(recipe, tmp_path)
    (tmp_path / "latest.json").write_text('{"checkpoint": "step-00000004"}')
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')  # a run that was killed
    run(recipe, tmp_path, resume=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_checkpoints_keep_the_last_few(tmp_path):
    run(replace(RECIPE, save_every=1, keep=2), tmp_path)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000005", "step-00000006"]


def test_frozen_parameters_stay_and_factors_scale_the_first_step(tmp_path):
    recipe = replace(
        RECIPE,
        steps=1,
        warmup=0,
        freeze=("unused", "bo*.weight"),
        lr_scale={"head": 0.5, "head.b": 0.25},
        weight_decay=0.0,
    )
    before = build_toy(recipe).model.state_dict()
    after = tensors(run(recipe, tmp_path))
    moved = {name: (after["model"][name] - before[name]).abs().max().item() for name in before}
    assert moved["body.weight"] == moved["unused.weight"] == 0
    assert not {"body.weight", "unused.weight"} & after["ema"].keys()
    # Adam's first step moves every weight by the learning rate
    assert moved["body.bias"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["head.weight"] == pytest.approx(5e-3, rel=1e-3) and moved["head.bias"] == pytest.approx(
        2.5e-3, rel=1e-3
    )


def test_stopped_run_is_the_start_of_the_whole_one(tmp_path):
    recipe = replace(RECIPE, schedule="cosine", save_every=4, keep=9)
    stopped = run(replace(recipe, stop=4), tmp_path / "stopped")
    assert (stopped.ending, stopped.step) == ("finished", 4)
    whole = run(recipe, tmp_path / "whole")
    assert_same(tensors(stopped), tensors(replace(whole, checkpoint=tmp_path / "whole" / "step-00000004")))


@needs_muon
def test_muon_takes_the_named_matrices_and_adamw_all_else(tmp_path):
    """Against torch's own two optimisers, each over its share, on the same gradients."""
    recipe = replace(RECIPE, muon=("body",), clip=0.0, accumulate=1)
    task = build_toy(recipe)
    model, named = task.model, dict(task.model.named_parameters())
    muon = torch.optim.Muon(
        [named["body.weight"]], weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    rest = [
        {"params": [p], "weight_decay": recipe.weight_decay * (p.ndim > 1)}
        for name, p in named.items()
        if name != "body.weight"
    ]
    adamw = torch.optim.AdamW(rest, betas=recipe.betas)
    order = iter(OrderedBatches(len(task.dataset), recipe.batch_size, recipe.seed, slices=1))
    for step in range(recipe.steps):
        batch = collate([task.dataset[i] for i in next(order)])
        task.loss(model, batch, seed_slice(recipe.seed, step, 0))[0].backward()
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            optimizer.step()
            optimizer.zero_grad()
    got = tensors(run(recipe, tmp_path))
    for name, value in model.state_dict().items():
        assert_close(got["model"][name], value)
    assert {key.split("|")[1] for key in got["optimizer"] if key.startswith("body.weight|")} == {
        "momentum_buffer"
    }


@needs_muon
def test_resumed_muon_run_is_bit_exact(tmp_path):
    recipe = replace(RECIPE, muon=("body", "head"))
    straight = run(recipe, tmp_path / "straight")
    run(replace(recipe, steps=3), tmp_path / "halves")
    assert_same(tensors(run(recipe, tmp_path / "halves", resume=True)), tensors(straight))


def test_muon_that_torch_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match="Expected torch 2.9 or later for the recipe's muon"):
        run(replace(RECIPE, muon=("body",)), tmp_path)


@pytest.mark.parametrize("key", ["freeze", "lr_scale", "muon"])
def test_prefixes_that_fit_nothing_are_refused(tmp_path, key):
    value = {"nose": 2.0} if key == "lr_scale" else ("nose",)
    with pytest.raises(
        ValueError,
        match=f"Expected prefixes of parameter names as {key} of the recipe, got 'nose'. Names "
        "begin with body, head, unused",
    ):
        run(replace(RECIPE, **{key: value}), tmp_path)


def test_freezing_everything_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="Expected parameters left to train, got a recipe that freezes all of them"
    ):
        run(replace(RECIPE, freeze=("*",)), tmp_path)


def test_mixed_precision_can_change_between_runs_of_one_process(tmp_path):
    exact = run(replace(RECIPE, steps=3), tmp_path / "exact")
    mixed = run(replace(RECIPE, steps=3, mixed_precision="bf16"), tmp_path / "mixed")
    assert 0 < abs(exact.loss - mixed.loss) < 0.05 * exact.loss
    assert all(value.dtype == torch.float32 for value in tensors(mixed)["ema"].values())


def test_time_limit_ends_with_a_checkpoint_that_continues_bit_exactly(tmp_path):
    straight = run(RECIPE, tmp_path / "straight")
    short = run(replace(RECIPE, max_minutes=1e-9), tmp_path / "short")
    assert (short.ending, short.step) == ("time", 1) and short.checkpoint.is_dir()
    assert_same(tensors(run(RECIPE, tmp_path / "short", resume=True)), tensors(straight))


def test_listener_stops_the_run_with_a_checkpoint(tmp_path):
    def stop(record):
        raise KeyboardInterrupt

    outcome = run(RECIPE, tmp_path, on_log=stop)
    assert (outcome.ending, outcome.step, outcome.checkpoint.name) == ("interrupted", 2, "step-00000002")


def test_signal_saves_and_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    outcome = run(
        RECIPE, tmp_path, on_log=lambda record: record["step"] == 4 and signal.raise_signal(signal.SIGINT)
    )
    assert outcome.ending == "interrupted" and outcome.step in (4, 5)
    assert (tmp_path / outcome.checkpoint.name / "state.json").is_file() and signal.getsignal(
        signal.SIGINT
    ) is before


def test_loss_that_is_not_finite_stops_before_the_checkpoint(tmp_path):
    run(replace(RECIPE, steps=2), tmp_path)
    broken = replace(RECIPE, loss={"factor": float("nan")})
    with pytest.raises(
        FloatingPointError, match="Expected a finite loss, got NaN or infinity near step 2. Lower lr"
    ):
        run(broken, tmp_path / "other")
    assert not list((tmp_path / "other").glob("step-*"))


def test_output_folders_are_not_overwritten_nor_confused(tmp_path):
    with pytest.raises(ValueError, match="Expected a checkpoint to resume from in"):
        run(RECIPE, tmp_path, resume=True)
    run(replace(RECIPE, steps=2), tmp_path)
    with pytest.raises(
        ValueError,
        match="Expected an output folder without a run, got .* with one at step-00000002. Resume it",
    ):
        run(RECIPE, tmp_path)
    with pytest.raises(
        ValueError,
        match=r"Expected the recipe of step-00000002 to resume from, got changes: lr \(was 0.01, is 0.02\)",
    ):
        run(replace(RECIPE, lr=0.02), tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Expected to create the output folder .*file/run, got an error"):
        run(RECIPE, tmp_path / "file" / "run")


def test_recipes_need_an_output_a_known_system_and_a_batch_that_divides(tmp_path):
    with pytest.raises(ValueError, match="Expected an output folder in the recipe, got none"):
        run(RECIPE, None)
    with pytest.raises(ValueError, match="Expected a recipe for one of the systems other, got 'toy'"):
        run_recipe(RECIPE, {"other": build_toy}, output=tmp_path)


def test_missing_accelerate_is_said_with_its_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'pip install "spatialweave\[train\]"'):
        run(RECIPE, tmp_path)


def launch(processes, recipe, folder, root):
    (folder / "recipe.json").write_text(json.dumps(recipe.to_json()))
    launcher = (
        []
        if processes == 1
        else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    )
    return subprocess.Popen(
        [sys.executable, *launcher, str(SCRIPT), str(root), str(folder / "recipe.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path, root):
    alone = run(RECIPE, tmp_path / "alone")
    (tmp_path / "launch").mkdir()
    process = launch(
        2, replace(RECIPE, accumulate=1, output=str(tmp_path / "together")), tmp_path / "launch", root
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.split() == ["finished", "6", "step-00000006"] * 2
    together = tensors(replace(alone, checkpoint=tmp_path / "together" / "step-00000006"))
    for group, expected in tensors(alone).items():
        assert together[group].keys() == expected.keys()
        for name, value in expected.items():
            assert_close(together[group][name], value)
    assert len((tmp_path / "together" / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.skipif(os.name != "posix", reason="Windows ends a process at SIGTERM, without asking it")
def test_interrupted_process_saves_and_resumes_bit_exactly(tmp_path, root):
    recipe = replace(RECIPE, steps=100_000, output=str(tmp_path / "run"), log_every=1)
    process = launch(1, recipe, tmp_path, root)
    log, started = tmp_path / "run" / "log.jsonl", time.monotonic()
    while not log.is_file() and time.monotonic() - started < 120:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    ending, step, checkpoint = out.split()
    assert ending == "interrupted" and checkpoint == f"step-{int(step):08d}"
    steps = int(step) + 2
    resumed = run(replace(recipe, steps=steps), tmp_path / "run", resume=True)
    # steps decides the end of the schedule alone, and this one is constant
    assert_same(tensors(resumed), tensors(run(replace(recipe, steps=steps), tmp_path / "straight")))
