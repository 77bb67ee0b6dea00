"""Another ComfyUI process beside the one that all tests share, and random weights."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def other_worker(worker, comfyui, root, tmp_path_factory):
    """A second ComfyUI, with a Triton that cannot be imported, and for what a test leaves in core's folders
    and our tables.
    """
    folder = tmp_path_factory.mktemp("other")
    (folder / "triton.py").write_text('raise ImportError("no Triton in this test")\n')
    other = type(worker)(comfyui, root, folder / "log.txt", PYTHONPATH=str(folder))
    yield other
    other.close()


@pytest.fixture(scope="session")
def tiny_weights(root, tmp_path_factory):
    """A folder with random tiny weights, or None where the pack ships trained ones."""
    if (root / "models" / "modality_forcing" / "tiny.safetensors").is_file():
        return None
    folder = tmp_path_factory.mktemp("weights")
    subprocess.run([sys.executable, str(HERE / "make_weights.py"), str(folder)], check=True)
    return str(folder)
