"""The program that measures what geometry tokens cost, at a small size, and the ratio that it computes."""

import importlib.util
import json
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker_spatial_diff_cost.py")


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("worker_spatial_diff_cost", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_computed_ratio_is_that_of_torchs_own_count(program):
    """A transformer block as plain matrix products on the meta device, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def count(length, width):
        rows = torch.empty(length, width, device="meta")
        square = torch.empty(width, width, device="meta")
        wide = torch.empty(width, 4 * width, device="meta")
        with FlopCounterMode(display=False) as counter:
            q, k, v = rows @ square, rows @ square, rows @ square
            attended = (q @ k.T) @ v @ square
            (attended @ wide) @ wide.T
        return counter.get_total_flops()

    for length, tokens, width in ((2560, 1024, 3072), (1024, 64, 96)):
        expected = count(length + tokens, width) / count(length, width)
        assert program.computed_ratio(length, tokens, width) == pytest.approx(expected, rel=1e-9)
    assert program.computed_ratio(2560, 0, 3072) == 1


@pytest.mark.comfyui
def test_the_program_writes_its_figures(comfyui, inside, root, tmp_path):
    """In the ComfyUI that runs already; how it starts one of its own is as in worker_intrinsic_cost.py."""
    arguments = [str(comfyui), str(root), "--sides", "64", "--grid", "4"]
    arguments += ["--width", "128", "--rounds", "2", "--json", str(tmp_path / "cost.json")]
    printed = inside(WORKER, "run_inside", arguments=arguments)
    figures = json.loads((tmp_path / "cost.json").read_text())
    assert json.loads(printed.splitlines()[-1]) == figures
    (row,) = figures["rows"]
    assert (row["length"], row["tokens"], figures["blocks"]) == (512 + 32, 16, 3)
    assert row["least"] <= row["ratio"] <= row["greatest"] and row["base_seconds"] > 0
    assert 1 < row["computed_kontext"] < row["computed"] < 1.1
    assert row["tokens_peak_mib"] > row["base_peak_mib"] > 0
