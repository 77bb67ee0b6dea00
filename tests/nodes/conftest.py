"""Another ComfyUI process beside the one that all tests share, and random weights."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def worker_with(worker, comfyui, root, tmp_path):
    """Start another ComfyUI, with these environment variables, for one test."""
    started = []

    def start(**environment):
        started.append(type(worker)(comfyui, root, tmp_path / "log.txt", **environment))
        return started[-1]

    yield start
    for other in started:
        other.close()


@pytest.fixture(scope="session")
def tiny_weights(root, tmp_path_factory):
    """A folder with random tiny weights, or None where the pack ships trained ones."""
    if (root / "models" / "modality_forcing" / "tiny.safetensors").is_file():
        return None
    folder = tmp_path_factory.mktemp("weights")
    subprocess.run([sys.executable, str(HERE / "make_weights.py"), str(folder)], check=True)
    return str(folder)
