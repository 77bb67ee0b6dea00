"""The depth contract in a real ComfyUI: into core's own depth and 3D nodes and back, and the first-hour scenarios about depth."""

import imageio.v3 as imageio
import numpy as np
import OpenEXR
import plyfile
import pytest
import trimesh
from scipy.spatial.transform import Rotation

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


@pytest.mark.parametrize("frame", ["camera", "world"])
def test_scenario_12_cloud_mesh_and_camera_open_upright_and_to_scale(geometry, tmp_path, frame):
    """Core writes them; plyfile and trimesh read them; projected by the camera packet, each point falls on its own pixel."""
    result = geometry("into_space", folder=str(tmp_path), frame=frame)
    assert result["shown_camera"] and result["fov"][0] == pytest.approx(60, abs=1e-3)
    depth, image = np.array(result["depth"]), np.array(result["image"])

    vertex = plyfile.PlyData.read(next(tmp_path.glob("cloud_00001*.ply")))["vertex"]
    points = np.stack([vertex[name] for name in "xyz"], axis=1)
    colours = np.stack([vertex[name] for name in ("red", "green", "blue")], axis=1)
    assert len(points) + result["holes"] == result["pixels"] and len(points) > 500
    column, row, z = seen_by(result["camera"], points, *depth.shape)
    np.testing.assert_allclose([column % 1, row % 1], 0.5, atol=1e-3)
    pixel = row.astype(int), column.astype(int)
    np.testing.assert_allclose(z, depth[pixel], rtol=1e-5)
    np.testing.assert_allclose(colours / 255, image[pixel], atol=0.51 / 255)

    (surface,) = trimesh.load(next(tmp_path.glob("mesh_00001*.glb"))).geometry.values()
    column, row, z = seen_by(result["camera"], np.asarray(surface.vertices), *depth.shape)
    np.testing.assert_allclose(z, depth[row.astype(int), column.astype(int)], rtol=1e-5)
    # trimesh turns v round: its origin is the lower left corner
    np.testing.assert_allclose(surface.visual.uv, np.stack([column / depth.shape[1], 1 - row / depth.shape[0]], axis=1), atol=1e-4)
    assert surface.visual.material.baseColorTexture.size == (37, 23)
    eye = np.array([result["camera"]["position"][axis] for axis in "xyz"])
    assert (np.einsum("ij,ij->i", surface.face_normals, eye - surface.triangles_center) > 0).all()


def seen_by(camera, points, height, width):
    """Pixel column, row and depth of points, as three.js would draw them: the camera looks down -z, fov is vertical."""
    turn = Rotation.from_quat([camera["quaternion"][axis] for axis in "xyzw"])
    x, y, z = turn.inv().apply(points - np.array([camera["position"][axis] for axis in "xyz"])).T
    top = np.tan(np.radians(camera["fov"]) / 2)
    return (1 + x / -z / (top * camera["aspect"])) * width / 2, (1 - y / -z / top) * height / 2, -z


def test_what_cannot_be_put_in_space_is_refused_in_one_sentence(geometry):
    refusals = geometry("space_refusals")
    wanted = {"index": "Picture 2 was asked of a batch of 2", "frame": "choose the frame 'camera'"}
    wanted |= {"no points": "raise the edge threshold", "no triangles": "raise the edge threshold"}
    for case, part in wanted.items():
        assert part in refusals[case] and refusals[case].count(". ") == 0, case


@pytest.mark.parametrize(("kind", "scale", "step"), [("png", 0.0, 3e-5), ("png", 0.001, 0.00051), ("exr", 0.0, 0), ("npz", 0.0, 0)])
def test_scenario_12_a_saved_depth_is_the_depth_loaded(geometry, tmp_path, kind, scale, step):
    result = geometry("save_and_load", folder=str(tmp_path), kind=kind, scale=scale)
    assert result["names"] == [[f"d 37_00001_.{kind}"], [f"d 37_00002_.{kind}"]]
    assert result["listed"] and result["valid"] is True and result["units"] == ["metric", "relative"]
    assert result["error"] <= step and result["mask"]
    assert result["said"].startswith(result["text"].split(",")[0]) and result["names"][0][0] in result["said"]


def test_other_programs_read_the_saved_depth(geometry, tmp_path):
    depth = np.array(geometry("save_and_load", folder=str(tmp_path), kind="png", scale=0.001)["depth"])
    np.testing.assert_allclose(imageio.imread(tmp_path / "d 37_00001_.png") / 1000, depth, atol=0.00051)
    geometry("save_and_load", folder=str(tmp_path), kind="exr")
    (path, *_) = sorted(tmp_path.glob("*.exr"))
    with OpenEXR.File(str(path), separate_channels=True) as file:
        z = file.channels()["Z"].pixels
    np.testing.assert_array_equal(np.where(np.isinf(z), 0, z), depth.astype(np.float32))
    assert np.isinf(z[0]).all()


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


@pytest.mark.parametrize("size", [(517, 1023), (3, 300), (2, 2)])
def test_scenario_2_odd_wide_and_tiny_sizes_are_kept(geometry, size):
    assert geometry("odd_size", height=size[0], width=size[1]) == [list(size)]


def test_a_stereo_pair_comes_with_its_holes(geometry):
    result = geometry("stereo", height=23, width=37)
    assert result["shapes"] == [[1, 23, 37, 3]] * 2 + [[1, 23, 37]] * 2
    assert all(0 < share < 0.2 for share in result["holes"]) and "has no picture" in result["refusal"]
