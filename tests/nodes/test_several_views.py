"""Scale Views, Fuse Views and Save COLMAP in a real ComfyUI: alone, in whole graphs,
with core's DA3, video and 3D nodes.
"""

import json
from pathlib import Path

import numpy as np
import plyfile
import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_several_views.py"
DEPTH = {"method": "metric depth", "metric_view": 2}
POINTS = {"method": "distance of two points", "distance": 3.0}
POINTS |= {
    "first_view": 0, "first_column": 20, "first_row": 40, "second_view": 1, "second_column": 50,
    "second_row": 30,
}
CAMERAS = {"method": "distance of two cameras", "distance": 2.0, "first_camera": 0, "second_camera": 1}


@pytest.fixture(scope="module")
def several(inside):
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


def test_a_metric_depth_gives_the_scale_of_all(several):
    result = several("scaled", method=DEPTH)
    assert result["depth"] < 1e-4 and result["pose"] < 1e-3 and result["units"] == "metric"
    assert result["text"].startswith("scale 2.5, by metric depth: median over") and "metres" in result["text"]


@pytest.mark.parametrize("method", [DEPTH, POINTS, CAMERAS], ids=lambda method: method["method"])
def test_a_whole_graph_runs(several, tmp_path, method):
    result = several("whole_graph", folder=str(tmp_path), method=method)
    assert not result["errors"]
    shown = result["shown"]
    scale = shown["6"]["text"][0]
    assert scale.startswith("scale ") and method["method"].split()[-1].rstrip("s") in scale
    assert "points of 4 views" in shown["7"]["text"][0]
    assert shown["4"]["result"][0].endswith(".ply") and shown["4"]["result"][1]["position"]
    (ply,) = tmp_path.glob("preview_pointcloud_*.ply")
    vertex = plyfile.PlyData.read(ply)["vertex"]
    assert len(vertex) > 400 and {"x", "red"} <= set(vertex.data.dtype.names)
    folder = Path(shown["5"]["text"][0].split("\n")[0])
    assert folder == tmp_path / "colmap" / "kitchen_00001_"
    listed = {str(Path(file["subfolder"]) / file["filename"]) for file in shown["5"]["files"]}
    assert listed == {str(path.relative_to(tmp_path)) for path in folder.rglob("*") if path.is_file()}
    again = several("whole_graph", folder=str(tmp_path), method=method, layout="colmap")
    second = Path(again["shown"]["5"]["text"][0].split("\n")[0])
    assert second.name == "kitchen_00002_" and not (second / "transforms.json").exists()


def test_a_known_distance_is_in_the_saved_cameras(several, tmp_path):
    """The two cameras stand as far apart as was stated, read from images.txt."""
    result = several("whole_graph", folder=str(tmp_path), method=CAMERAS, layout="nerfstudio")
    folder = Path(result["shown"]["5"]["text"][0].split("\n")[0])
    data = json.loads((folder / "transforms.json").read_text())
    eyes = [np.array(frame["transform_matrix"])[:3, 3] for frame in data["frames"]]
    assert np.linalg.norm(eyes[0] - eyes[1]) == pytest.approx(2.0, rel=1e-4) and data["units"] == "metric"


def test_cores_depth_anything_nodes_put_our_views_where_we_do(several):
    """Core unprojects at whole pixels, half a pixel to the left and half a pixel up from the pixel's center.
    """
    result = several("points_by_core_and_by_us")
    assert result["poses"] < 1e-6
    np.testing.assert_allclose(result["gaps"], [[np.sqrt(0.5)] * 2] * 3, atol=2e-3)
    low, high = result["mesh"]
    assert low[1] < 0.2 and high[1] > 0.3, "y up"


def test_the_frames_of_a_video(several, tmp_path):
    """Fused small, saved at twice their size."""
    result = several("video", folder=str(tmp_path))
    data = json.loads((Path(result["folder"]) / "transforms.json").read_text())
    assert [frame["file_path"] for frame in data["frames"]] == [f"images/view_000{i}.png" for i in (0, 2, 4)]
    assert {(frame["w"], frame["h"]) for frame in data["frames"]} == {(96, 64)}
    assert result["indices"] == [0, 2, 4] and result["points"] > 500 and result["colors"]


def test_what_cannot_be_is_refused_in_one_sentence(several, tmp_path):
    refusals = several("refusals", folder=str(tmp_path))
    expected = {
        "no metric": "Expected a metric depth at metric, got none",
        "relative metric": "got a relative one",
        "no poses": "Expected views with poses (world_to_cam)",
        "apart": "Expected views that overlap, got 2",
        "voxel": "Expected voxels smaller than the scene",
        "confidence": "Expected views with confidence, got none",
        "nothing sure": "Expected points after the fusion, got none",
        "not metres": "Expected views in metres, got relative ones",
        "outside": "which leads out of it",
        "in a file": "a part of this path is a file, not a folder",
    }
    for case, words in expected.items():
        assert words in (refusals[case] or ""), (case, refusals[case])
        assert "\n" not in refusals[case]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("at", [0, 2])
def test_cancel_ends_between_two_views_and_leaves_no_folder(several, tmp_path, at):
    result = several("cancelled", folder=str(tmp_path), at=at)
    assert result == {"FuseViews": True, "SaveColmap": True, "left": []}
