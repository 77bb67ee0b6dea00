"""Numbers typed into the real frontend, in Chromium: classic nodes and Nodes 2.0."""

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
HERE = Path(__file__).resolve().parent
TYPED = [
    ("SpatialWeave_LoadDepth", "png_scale", "1/256", 1 / 256),
    ("SpatialWeave_LoadDepth", "png_scale", "0.00390625", 1 / 256),
    ("SpatialWeave_LoadDepth", "png_scale", "0.0002", 0.0002),
    ("SpatialWeave_LoadDepth", "png_scale", "10/65535", 10 / 65535),
    ("SpatialWeave_SaveDepth", "png_scale", "0.0002", 0.0002),
    ("SpatialWeave_ViewFromImage", "near", "0.1234", 0.1234),
    ("SpatialWeave_StereoPair", "screen", "0.007", 0.007),
]


# Load Depth as it was saved before it had png_scale_preset: the upload button's value stands last
SAVED = {
    "last_node_id": 2, "last_link_id": 1, "version": 0.4, "groups": [], "config": {}, "extra": {},
    "nodes": [
        {
            "id": 1, "type": "SpatialWeave_LoadDepth", "pos": [100, 100], "size": [400, 200], "flags": {},
            "order": 0, "mode": 0,
            "inputs": [], "properties": {},
            "widgets_values": ["kitti_steps.png", "metric", 0.001, "", 0.0, "image"],
            "outputs": [
                {"name": "VIEW", "type": "SPATIALWEAVE_VIEW", "links": None},
                {"name": "STRING", "type": "STRING", "links": [1]}
            ],
        },
        {
            "id": 2, "type": "PreviewAny", "pos": [600, 100], "size": [300, 200], "flags": {}, "order": 1,
            "mode": 0,
            "inputs": [{"name": "source", "type": "*", "link": 1}], "outputs": [], "properties": {},
            "widgets_values": [],
        },
    ],
    "links": [[1, 1, 1, 2, 0, "STRING"]],
}  # fmt: skip


@pytest.fixture(scope="module")
def typed(browser, server, installed):
    """What became of TYPED and SAVED in the frontend, by its look."""
    image = pytest.importorskip("PIL.Image")
    (installed / "input").mkdir(exist_ok=True)
    image.new("I;16", (8, 6), 5120).save(installed / "input" / "kitti_steps.png")
    asked = json.dumps([*(typed[:3] for typed in TYPED), SAVED])

    def run(look):
        call = ["node", str(HERE / "browser_numbers.cjs"), server[0].url, "kitti_steps.png", look, asked]
        ended = subprocess.run(call, env=browser, capture_output=True, encoding="utf-8", timeout=280)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return run


@pytest.mark.parametrize("look", ["classic", "vue"])
def test_a_number_typed_in_the_browser_arrives(typed, look):
    """In the widget, in the prompt that is queued, and in the depth that Load Depth reads:
    5120 steps of 1/256 m are 20 m.
    """
    *seen, saved = typed(look)
    assert len(seen) == len(TYPED)
    for (_, _, text, wanted), entry in zip(TYPED, seen):
        assert entry["value"] == pytest.approx(wanted, rel=1e-6), entry
        if "queued" in entry:
            assert entry["queued"] == entry["value"], entry
            metres = 5120 * wanted
            assert entry["said"].startswith(f"depth 1 x 6 x 8, {metres:.4g} to {metres:.4g} metres"), (
                text, entry,
            )
    assert saved["said"].startswith("depth 1 x 6 x 8, 5.12 to 5.12 metres"), saved
