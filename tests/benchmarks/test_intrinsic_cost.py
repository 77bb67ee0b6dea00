"""The program that measures what co-generation costs: its parts, on two steps of small latents."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER, METERS = (Path(__file__).with_name(name) for name in ("worker_intrinsic_cost.py", "meters.py"))
# SDXL's levels, a fifth as wide and with fewer transformer blocks
SHRUNKEN = {
    "model_channels": 64, "num_head_channels": 32, "context_dim": 64, "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
}  # fmt: skip


def test_memory_is_that_of_the_tensors_alive_at_once():
    spec = importlib.util.spec_from_file_location("meters", METERS)
    meters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(meters)
    mebibyte = torch.zeros(1 << 18)

    def run():
        a = mebibyte + 1  # 1
        b = a.view(512, 512) * 2  # 2
        del a
        c = [b.clone() for _ in range(3)]  # 4
        mebibyte.add_(1)
        d = b[:2]
        del b, c  # 1, as the view holds it
        return d + torch.relu(mebibyte[:512])  # 1 and little

    with torch.inference_mode():
        assert meters.Processor().peak(run) == meters.Processor().peak(run) == 4


@pytest.fixture
def arguments(comfyui, root, tmp_path):
    """Of the program, but for what a test asks of it."""
    return [str(comfyui), str(root), "--steps", "2", "--side", "8", "--json", str(tmp_path / "cost.json")]


def read(printed, file):
    """(the figures it wrote, what it printed)."""
    figures = json.loads(file.read_text())
    assert json.loads(printed.splitlines()[-1]) == figures
    return figures, printed


@pytest.fixture
def cost(arguments, tmp_path):
    """Runs the program in a process of its own."""

    def run(*options):
        call = [sys.executable, str(WORKER), *arguments, *options]
        done = subprocess.run(call, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
        return read(done.stdout, tmp_path / "cost.json")

    return run


@pytest.fixture
def cost_inside(arguments, inside, tmp_path):
    """Runs the program in the ComfyUI that runs already."""

    def run(*options):
        printed = inside(WORKER, "run_inside", arguments=[*arguments, *options])
        return read(printed, tmp_path / "cost.json")

    return run


def check_kinds(kinds):
    assert {"base", "drop", "gaussian", "gaussian, maps stopped", "all steps, w = 1"} < set(kinds)
    assert kinds["base"]["ratio"] == kinds["base"]["least"] == kinds["base"]["greatest"] == 1
    for row in kinds.values():
        assert row["ms_per_step"] > 0 and row["least"] <= row["ratio"] <= row["greatest"]
    peaks = {kind: row["peak_mib"] for kind, row in kinds.items()}
    assert 1.8 * peaks["base"] < peaks["base, two images"] < 2.6 * peaks["base"], "twice the rows"
    assert all(peaks["base"] < peaks[kind] for kind in ("drop", "gaussian", "all steps, w = 1")), (
        "at this size mostly the LoRA's own"
    )


@pytest.mark.comfyui
def test_every_kind_of_run_is_checked_timed_and_weighed(cost):
    figures, printed = cost("--rounds", "2", "--check-steps", "1")
    assert sorted(figures) == ["sd21", "tiny"]
    for name, figure in figures.items():
        assert (
            (figure["side"], figure["steps"], figure["rounds"]) == (8, 2, 2)
            and f"{name}, latents of 8 x 8" in printed
        )
        assert (figure["device"], figure["dtype"], figure["torch"]) == ("cpu", "float32", torch.__version__)
        assert figure["base_repeats_bit_for_bit"], "as it must on the CPU"
        check_kinds(figure["kinds"])
        assert figure["kinds"]["all steps, w = 1"]["ratio"] > 1


@pytest.mark.comfyui
def test_sdxl_is_measured_as_the_others(cost_inside):
    figures, _ = cost_inside(
        "--rounds", "1", "--check-steps", "1", "--models", "sdxl", "--sizes", json.dumps(SHRUNKEN)
    )
    assert list(figures) == ["sdxl"]
    check_kinds(figures["sdxl"]["kinds"])


@pytest.mark.gpu
@pytest.mark.comfyui
@pytest.mark.skipif(not torch.cuda.is_available(), reason="it measures a CUDA device")
def test_a_card_is_measured_in_half_precision(cost):
    figures, _ = cost("--rounds", "1", "--device", "cuda", "--models", "tiny", "sd21", "sdxl")
    assert sorted(figures) == ["sd21", "sdxl", "tiny"]
    for figure in figures.values():
        assert (figure["device"], figure["dtype"]) == (torch.cuda.get_device_name(), "float16")
        check_kinds(figure["kinds"])
