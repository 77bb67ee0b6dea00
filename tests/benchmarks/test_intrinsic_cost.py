"""The program that measures what co-generation costs: its parts, on two steps of small latents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker_intrinsic_cost.py")


@pytest.mark.comfyui
def test_every_kind_of_run_is_checked_timed_and_weighed(comfyui, root, tmp_path):
    call = [sys.executable, str(WORKER), str(comfyui), str(root), "--rounds", "2", "--steps", "2", "--side", "8"]
    done = subprocess.run([*call, "--json", str(tmp_path / "cost.json")], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "cost.json").read_text())
    assert sorted(figures) == ["sd21", "tiny"] and json.loads(done.stdout.splitlines()[-1]) == figures
    for name, figure in figures.items():
        assert (figure["side"], figure["steps"], figure["rounds"]) == (8, 2, 2) and f"{name}, latents of 8 x 8" in done.stdout
        kinds = figure["kinds"]
        assert {"base", "drop", "gaussian", "gaussian, maps stopped", "all steps, w = 1"} < set(kinds)
        assert kinds["base"]["ratio"] == kinds["base"]["least"] == kinds["base"]["greatest"] == 1
        for row in kinds.values():
            assert row["ms_per_step"] > 0 and row["least"] <= row["ratio"] <= row["greatest"]
            assert row["peak_mib"] is None or row["peak_mib"] >= 0
        assert kinds["all steps, w = 1"]["ratio"] > 1
