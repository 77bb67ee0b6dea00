"""The depth contract in a real ComfyUI: into core's own depth and 3D nodes and back, and files."""

import json

import imageio.v3 as imageio
import numpy as np
import OpenEXR
import pytest
from PIL import Image

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


def test_what_cannot_be_put_in_space_is_refused_in_one_sentence(geometry):
    refusals = geometry("space_refusals")
    wanted = {"index": "Picture 2 was asked of a batch of 2", "frame": "choose the frame 'camera'"}
    wanted |= {"no points": "raise the edge threshold", "no triangles": "raise the edge threshold"}
    for case, part in wanted.items():
        assert part in refusals[case] and refusals[case].count(". ") == 0, case


def test_other_programs_read_the_saved_depth(geometry, tmp_path):
    depth = np.array(geometry("save_and_load", folder=str(tmp_path), kind="png", scale=0.001)["depth"])
    np.testing.assert_allclose(imageio.imread(tmp_path / "d 37_00001_.png") / 1000, depth, atol=0.00051)
    geometry("save_and_load", folder=str(tmp_path), kind="exr")
    (path, *_) = sorted(tmp_path.glob("*.exr"))
    with OpenEXR.File(str(path), separate_channels=True) as file:
        z = file.channels()["Z"].pixels
    np.testing.assert_array_equal(np.where(np.isinf(z), 0, z), depth.astype(np.float32))
    assert np.isinf(z[0]).all()


def test_the_graph_is_in_the_file_unless_the_user_forbade_it(geometry, tmp_path):
    geometry("save_and_load", folder=str(tmp_path), kind="png")
    with Image.open(tmp_path / "d 37_00001_.png") as picture:
        assert json.loads(picture.text["prompt"]) == {"1": {"class_type": "Any"}} and json.loads(picture.text["workflow"]) == {"nodes": []}
    names = geometry("saved_without_metadata", folder=str(tmp_path))
    assert names == ["b0_00001_.png", "b1_00002_.png"]
    with Image.open(tmp_path / names[0]) as picture:
        assert not {"prompt", "workflow"} & set(picture.text) and picture.text["depth_units"] == "metric"


def test_every_picture_of_a_batch_is_saved(geometry, tmp_path):
    result = geometry("save_and_load", folder=str(tmp_path), kind="exr", batch=3)
    assert result["names"] == [[f"d 37_{number:05}_.exr" for number in numbers] for numbers in ((1, 2, 3), (4, 5, 6))]
    assert geometry("save_and_load", folder=str(tmp_path), kind="npz", batch=3)["batch"] == 3


def test_files_that_cannot_be_are_refused_in_one_sentence(geometry, tmp_path):
    refusals = geometry("file_refusals", folder=str(tmp_path))
    wanted = {"outside": "leads out of the output folder", "nothing valid": "no valid pixel", "too deep": "larger scale"}
    wanted |= {"not there": "There is no file '../secret.npz' in the input folder"}
    for case, part in wanted.items():
        assert part in refusals[case] and "\n" not in refusals[case], case
    assert not list(tmp_path.iterdir())


def test_depths_are_compared_aligned_and_given_normals(geometry):
    result = geometry("judged")
    assert result["before"][0] > 0.01 and max(result["after"][0], result["after"][4]) < 1e-5
    assert result["after"][1:4] == [1, 1, 1] and result["after"][6] < 0.1 and result["shown"]
    assert result["text"].startswith("picture 0: scale 4, shift -0.4") and "metres" in result["text"]
    up, down = result["normals"]  # 30 degrees: half of green's range, the other way in DirectX
    np.testing.assert_allclose([up, down], [[0.5, 0.75, 0.933], [0.5, 0.25, 0.933]], atol=2e-3)
    assert result["refusal"].endswith("choose an alignment.") and "wanted the same size" in result["size"]


def test_a_stereo_pair_comes_with_its_holes(geometry):
    result = geometry("stereo", height=23, width=37)
    assert result["shapes"] == [[1, 23, 37, 3]] * 2 + [[1, 23, 37]] * 2
    assert all(0 < share < 0.2 for share in result["holes"]) and "has no picture" in result["refusal"]
