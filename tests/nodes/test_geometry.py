"""The depth contract in a real ComfyUI: into core's own depth and 3D nodes and back, and the first-hour scenarios about depth."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_geometry.py"


@pytest.fixture(scope="module")
def geometry(inside):
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


def test_cores_depth_nodes_take_our_packets_and_we_take_theirs(geometry):
    result = geometry("packets")
    assert result["fov"] == pytest.approx(60, abs=1e-3) and result["render"] == [1, 23, 37, 3]
    assert result["moge_equal"] and result["da3_equal"] and result["raw_equal"]
    for far, near in (result["mesh_z"], result["da3_mesh_z"]):
        assert -3 <= far < -2.9 and near == pytest.approx(-1.25)  # y up, looking down -z, in metres
    assert "1.25 to 3 metres, larger = farther" in result["text"]


def test_scenario_1_rgba_and_one_channel_are_accepted(geometry):
    result = geometry("rgba")
    assert result["picture"] == [1, 3, 5, 3] and result["single"] and result["sky"] == 0
    assert result["valid"][0] == [0, 1, 1, 1, 1] and result["valid"][1:] == [[1] * 5] * 2
    assert "1 of 15 depth pixels (6.7%) are invalid and left out: 1 masked out." in result["text"]


def test_scenario_4_bad_depth_is_masked_counted_and_refused_only_when_nothing_is_left(geometry):
    assert "no valid pixel" in geometry("bad_depth", kind="all zero")["refusal"]
    assert "1 NaN, 1 infinite, 1 zero or negative" in geometry("bad_depth", kind="holes")["text"]
    assert "1 to 1 relative units" in geometry("bad_depth", kind="constant")["text"]


def test_scenario_6_batches_of_different_size_are_refused_and_one_serves_all(geometry):
    result = geometry("batches")
    assert result["refusal"] == "4 of depth and 3 of image arrived: give equally many, or one for all."
    assert result["broadcast"] == [4, 3, 5, 3]
