"""Numbers typed into the real frontend, in Chromium: classic nodes and Nodes 2.0."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
HERE = Path(__file__).resolve().parent
WANTED = "set NODE_PATH to a node_modules folder with playwright-core, and CHROMIUM to a Chromium"
TYPED = [
    ("SpatialWeave_LoadDepth", "png_scale", "1/256", 1 / 256),
    ("SpatialWeave_LoadDepth", "png_scale", "0.00390625", 1 / 256),
    ("SpatialWeave_LoadDepth", "png_scale", "0.0002", 0.0002),
    ("SpatialWeave_LoadDepth", "png_scale", "10/65535", 10 / 65535),
    ("SpatialWeave_SaveDepth", "png_scale", "0.0002", 0.0002),
    ("SpatialWeave_ViewFromImage", "near", "0.1234", 0.1234),
    ("SpatialWeave_StereoPair", "screen", "0.007", 0.007),
]


@pytest.fixture(scope="module")
def browser():
    """The environment in which the script finds playwright-core and Chromium, or a skip that says what is missing."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    node = shutil.which("node")
    if node is None or chromium is None:
        pytest.skip(f"no {'Node.js' if node is None else 'Chromium'} for the browser's tests; {WANTED}")
    if subprocess.run([node, "-e", "require('playwright-core')"], capture_output=True).returncode:
        pytest.skip(f"no playwright-core for the browser's tests; {WANTED}")
    return os.environ | {"CHROMIUM": chromium}


@pytest.mark.parametrize("look", ["classic", "vue"])
def test_a_number_typed_in_the_browser_arrives(server, installed, browser, look):
    """In the widget, in the prompt that is queued, and in the depth that Load Depth reads: 5120 steps of 1/256 m are 20 m."""
    image = pytest.importorskip("PIL.Image")
    (installed / "input").mkdir(exist_ok=True)
    image.new("I;16", (8, 6), 5120).save(installed / "input" / "kitti_steps.png")
    call = ["node", str(HERE / "browser_numbers.cjs"), server[0].url, "kitti_steps.png", look, json.dumps([typed[:3] for typed in TYPED])]
    run = subprocess.run(call, env=browser, capture_output=True, encoding="utf-8", timeout=280)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert len(seen) == len(TYPED)
    for (_, _, text, wanted), entry in zip(TYPED, seen):
        assert entry["value"] == pytest.approx(wanted, rel=1e-6), entry
        if "queued" in entry:
            assert entry["queued"] == entry["value"], entry
            metres = 5120 * wanted
            assert entry["said"].startswith(f"depth 1 x 6 x 8, {metres:.4g} to {metres:.4g} metres"), (text, entry)
