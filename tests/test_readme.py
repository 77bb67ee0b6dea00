"""The README's own code, and that of the pages it sends a reader to: what is copied must run."""

import json
import re
import subprocess
import sys

import pytest

LONGEST = 150  # lines of the README
THREE_JOBS = """
assert result.image.shape == again.shape == (1, 128, 128, 3)
assert result.view.depth.shape == depth.depth.shape == (1, 128, 128)
assert result.view.units == depth.units == "relative" and bool(depth.mask.any())
assert not [name for name in sys.modules if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths")]
"""
PAIRS = "import torch\nq, k, v = torch.randn(3, 2, 4, 24, 16, generator=torch.Generator().manual_seed(0))\n"
CONCATENATED = """
keys, values = (torch.cat([x, x.flip(0)], dim=2) for x in (k, v))
bias = torch.tensor([[1.0, 0.4], [1.0, 1.0]]).log().repeat_interleave(24, 1)[:, None, None]
expected = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
assert out.shape == q.shape and torch.allclose(out, expected, atol=1e-5)
"""


def read_section(pack, page, heading):
    (section,) = re.findall(
        rf"^## {heading}\n(.*?)(?=^## |\Z)", pack.text(page), flags=re.MULTILINE | re.DOTALL
    )
    return section


def read_example(pack, page, heading):
    (code,) = re.findall(
        r"^```python\n(.*?)^```", read_section(pack, page, heading), flags=re.MULTILINE | re.DOTALL
    )
    return code


def run(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short_and_begins_with_images(pack):
    lines = pack.text("README.md").splitlines()
    assert len(lines) <= LONGEST
    first = next(index for index, line in enumerate(lines) if line.startswith("!["))
    assert first < next(index for index, line in enumerate(lines) if line.startswith("## "))


@pytest.mark.slow
def test_the_python_example_does_the_three_jobs_without_comfyui(pack, tmp_path):
    if "models/modality_forcing/tiny.safetensors" not in pack.files:
        pytest.skip("this checkout has no tiny weights, so the README's example did not run")
    run(read_example(pack, "README.md", "In Python") + THREE_JOBS, tmp_path)


@pytest.mark.slow
def test_the_intrinsics_example_gives_an_image_and_its_four_maps(pack, tmp_path):
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    code = read_example(pack, "docs/python.md", "I-LDM").replace(
        "result.decode_maps()", "maps = result.decode_maps()"
    )
    assert "maps = " in code
    run(
        code + "assert result.image.shape == (1, 128, 128, 3) and maps.view.depth.shape == (1, 128, 128)",
        tmp_path,
    )


def test_the_attention_example_is_attention_over_both_rows_with_the_weights_as_a_bias(pack, tmp_path):
    run(
        PAIRS + read_example(pack, "docs/python.md", "One attention for coupled streams") + CONCATENATED,
        tmp_path,
    )


def test_every_workflow_and_its_way_in_is_named(pack, root):
    page = pack.text("docs/nodes.md")
    for graph in (root / "workflows").glob("*.json"):
        assert f"`{graph.stem}`" in page
    assert "comfy run --workflow workflows/api/" in page and "python workflows/run.py workflows/api/" in page
    assert "python workflows/run.py workflows/api/" in pack.text("README.md")


def test_all_five_systems_are_named_and_those_without_code_are_said_to_be_absent(pack):
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \|", read_section(pack, "README.md", "Five systems"), flags=re.MULTILINE
    )
    runs = {name.split(" (")[0]: answer for name, answer in rows if name != "System"}
    folders = {
        "Modality Forcing": "modality_forcing", "I-LDM": "intrinsic_ldm", "SpatialDiff": "spatial_diff",
    }
    folders |= {"SpatialFusion": "spatial_fusion", "JoyAI-Image": "joyai_edit"}
    there = {name for name, folder in folders.items() if f"models/{folder}/__init__.py" in pack.files}
    assert (
        set(runs) == set(folders)
        and {name for name, answer in runs.items() if answer.strip() != "nothing"} == there
    )


FIGURES = {  # in the page's order; True: the higher the better
    "image_to_depth.absrel": False,
    "image_to_depth.delta1": True,
    "joint.absrel": False,
    "joint.border_step": False,
    "joint.inner_step": False,
    "joint.blockiness": False,
    "objects.broken": False,
    "depth_to_image.absrel": False,
    "caption.agreement": True,
    "scorer.accuracy": True,
}


def test_the_figures_are_those_that_were_evaluated_and_a_missed_goal_is_in_bold(pack):
    """docs/evaluation.json is what `spatialweave evaluate` wrote."""
    evaluated = json.loads(pack.text("docs/evaluation.json"))
    section = read_section(pack, "docs/evaluation.md", "Modality Forcing")
    assert f"--n {evaluated['scenes']} " in section
    rows = re.findall(r"\| (\**)([\d.]+)\** \| ([\d.]+) \|$", section, flags=re.MULTILINE)
    assert len(rows) == len(FIGURES)
    for (bold, shown, goal), (name, rising) in zip(rows, FIGURES.items(), strict=True):
        value = evaluated[name]
        assert float(shown) == pytest.approx(value, abs=0.00051), name
        missed = value < float(goal) if rising else value > float(goal)
        assert bool(bold) == missed, name
