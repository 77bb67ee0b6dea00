"""The README's own code: what a reader copies must run."""

import json
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


def read_examples(pack):
    (section,) = re.findall(r"^## In Python\n(.*?)^## ", pack.text("README.md"), flags=re.MULTILINE | re.DOTALL)
    joint, intrinsics = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return joint, intrinsics


def run(code, folder):
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_python_example_does_the_three_jobs_without_comfyui(pack, tmp_path):
    if "models/modality_forcing/tiny.safetensors" not in pack.files:
        pytest.skip("this checkout has no tiny weights, so the README's example did not run")
    run(read_examples(pack)[0] + THREE_JOBS, tmp_path)


def test_the_intrinsics_example_gives_an_image_and_its_four_maps(pack, tmp_path):
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    code = read_examples(pack)[1].replace("decode_pictures(made.maps)", "maps = decode_pictures(made.maps)")
    assert "maps = " in code
    run(code + "assert made.image.shape == (1, 128, 128, 3) and maps.view.depth.shape == (1, 128, 128)", tmp_path)


def test_every_workflow_and_its_way_in_is_named(pack, root):
    readme = pack.text("README.md")
    for graph in (root / "workflows").glob("*.json"):
        assert f"`{graph.stem}`" in readme
    assert "comfy run --workflow workflows/api/" in readme and "python workflows/run.py workflows/api/" in readme


FIGURES = {  # in the README's order; True: the higher the better
    "image_to_depth.absrel": False,
    "image_to_depth.delta1": True,
    "joint.absrel": False,
    "depth_to_image.absrel": False,
    "caption.agreement": True,
    "scorer.accuracy": True,
}


def test_the_figures_are_those_that_were_evaluated_and_a_missed_goal_is_in_bold(pack):
    """docs/evaluation.json is what `spatialweave evaluate` wrote."""
    evaluated = json.loads(pack.text("docs/evaluation.json"))
    (section,) = re.findall(r"^## How good is the tiny model\n(.*?)^## ", pack.text("README.md"), flags=re.MULTILINE | re.DOTALL)
    assert f"--n {evaluated['scenes']} " in section
    rows = re.findall(r"\| (\**)([\d.]+)\** \| ([\d.]+) \|$", section, flags=re.MULTILINE)
    assert len(rows) == len(FIGURES)
    for (bold, shown, goal), (name, rising) in zip(rows, FIGURES.items(), strict=True):
        value = evaluated[name]
        assert float(shown) == pytest.approx(value, abs=0.00051), name
        missed = value < float(goal) if rising else value > float(goal)
        assert bool(bold) == missed, name
