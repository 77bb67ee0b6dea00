"""One ComfyUI process for all tests of the nodes: starting it takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


class Worker:
    """tests/nodes/worker.py, spoken to in JSON lines."""

    def __init__(self, comfyui, root, log, **environment):
        self.log = log
        call = [sys.executable, str(HERE / "worker.py"), str(comfyui), str(root)]
        pipes = {
            "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log.open("wb"),
            "encoding": "utf-8",
        }
        pipes["env"] = os.environ | environment
        self.process = subprocess.Popen(call, **pipes)
        self.started = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, f"ComfyUI's process ended:\n{self.log.read_text(errors='replace')[-3000:]}"
        return json.loads(line)

    def call(self, file, function, **kwargs):
        """The function's value; its traceback as an AssertionError."""
        self.process.stdin.write(json.dumps({"file": file, "function": function, "kwargs": kwargs}) + "\n")
        self.process.stdin.flush()
        reply = self.answer()
        assert "error" not in reply, reply["error"]
        return reply["value"]

    def text(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def close(self):
        self.process.kill()  # nothing to save, and leaving politely takes ComfyUI ten seconds
        self.process.wait()


@pytest.fixture(scope="session")
def worker(comfyui, root, tmp_path_factory):
    worker = Worker(comfyui, root, tmp_path_factory.mktemp("comfyui") / "log.txt")
    yield worker
    worker.close()


@pytest.fixture
def worker_with(comfyui, root, tmp_path):
    """Start another ComfyUI, with these environment variables, for one test."""
    started = []

    def start(**environment):
        started.append(Worker(comfyui, root, tmp_path / "log.txt", **environment))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


@pytest.fixture(scope="session")
def inside(worker):
    """Call a function of tests/nodes/inside_*.py in a real ComfyUI."""
    return worker.call


@pytest.fixture(scope="session")
def tiny_weights(root, tmp_path_factory):
    """A folder with random tiny weights, or None where the pack ships trained ones."""
    if (root / "models" / "modality_forcing" / "tiny.safetensors").is_file():
        return None
    folder = tmp_path_factory.mktemp("weights")
    subprocess.run([sys.executable, str(HERE / "make_weights.py"), str(folder)], check=True)
    return str(folder)
