"""The README's own code: what a reader copies must run."""

import re
import subprocess
import sys

import pytest

THREE_JOBS = """
assert result.image.shape == again.shape == (1, 128, 128, 3)
assert result.view.depth.shape == depth.depth.shape == (1, 128, 128)
assert result.view.units == depth.units == "relative" and bool(depth.mask.any())
assert not [name for name in sys.modules if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths")]
"""


def test_the_python_example_does_the_three_jobs_without_comfyui(pack, tmp_path):
    if "models/modality_forcing/tiny.safetensors" not in pack.files:
        pytest.skip("this checkout has no tiny weights, so the README's example did not run")
    (section,) = re.findall(r"^## In Python\n(.*?)^## ", pack.text("README.md"), flags=re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", f"import sys\n{block}{THREE_JOBS}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_workflow_and_its_way_in_is_named(pack, root):
    readme = pack.text("README.md")
    for graph in (root / "workflows").glob("*.json"):
        assert f"`{graph.stem}`" in readme
    assert "comfy run --workflow workflows/api/" in readme and "python workflows/run.py workflows/api/" in readme
