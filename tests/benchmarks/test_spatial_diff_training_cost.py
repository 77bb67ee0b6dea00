"""The program that measures what a training step of SpatialDiff takes, on its small editor."""

import json
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("worker_spatial_diff_training.py")


def test_the_program_writes_its_figures(tmp_path):
    call = [sys.executable, str(WORKER), "--only", "kontext", "--rounds", "1", "--side", "64"]
    call += ["--json", str(tmp_path / "cost.json")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "cost.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == figures
    rows = {(row["stage"], row["checkpointing"]): row for row in figures["rows"]}
    assert set(rows) == {(stage, on) for stage in ("connector", "lora") for on in (False, True)}
    for row in rows.values():
        # 512 words, target and reference of 4 x 4 tokens, 4 x 4 geometry tokens
        assert row["length"] == 512 + 3 * 16 and row["batch"] == 1
        assert row["steps_per_second"] > 0 and row["told_seconds"] > 0
    for stage in ("connector", "lora"):
        assert rows[stage, True]["peak_mib"] < rows[stage, False]["peak_mib"]
        assert rows[stage, True]["told_activations_mib"] < rows[stage, False]["told_activations_mib"]
    trained = [rows[stage, False]["trained_parameters"] for stage in ("connector", "lora")]
    assert trained[0] < trained[1]  # the LoRA and the head are trained, too
