"""The Triton kernels' numbers, without a GPU: Triton's interpreter in its own process, against the reference in float64."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spatialweave.kernels.segment_attention.cases import CASES

pytest.importorskip("triton", reason="triton exists for Linux and Windows machines with a GPU; its tests run where torch brings it")
LIMIT = {"float32": 1e-6, "float16": 6e-4}
WORKER = Path(__file__).with_name("worker_interpreter.py")
HALF = ["pairs-mixed-float16", "halves-mixed-float16"]


def results(part):
    done = subprocess.run([sys.executable, "-P", str(WORKER), part], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def forward():
    return results("forward")


@pytest.mark.parametrize("name", [f"{case.name}-float32" for case in CASES] + HALF + ["one-tile-float32"])
def test_the_kernel_is_the_reference(forward, name):
    found, limit = forward[name], LIMIT[name.rsplit("-", 1)[1]]
    assert found["out"] < limit and found["lse"] < 1e-6
    assert found["unseen"] and found["same"] and found["layout"]


def test_the_op_checks_the_kernel_and_runs_it():
    found = results("op")["op-float16"]
    assert found["out"] < 6e-4 and found["proven"] == 1
