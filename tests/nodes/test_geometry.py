"""The depth contract in a real ComfyUI: into core's own depth and 3D nodes and back, and files."""

import io
import json
import struct

import imageio.v3 as imageio
import numpy as np
import OpenEXR
import plyfile
import pytest
import trimesh
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
    wanted = {"index": "Expected an index below 2, the batch size", "frame": "Choose the frame 'camera'"}
    wanted |= {"no points": "Raise the edge threshold", "no triangles": "Raise the edge threshold"}
    for case, part in wanted.items():
        assert part in refusals[case] and refusals[case].count(". ") <= 1, case


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
        assert json.loads(picture.text["prompt"]) == {"1": {"class_type": "Any"}} and json.loads(
            picture.text["workflow"]
        ) == {"nodes": []}
    names = geometry("saved_without_metadata", folder=str(tmp_path))
    assert names == ["b0_00001_.png", "b1_00002_.png"]
    with Image.open(tmp_path / names[0]) as picture:
        assert not {"prompt", "workflow"} & set(picture.text) and picture.text["depth_units"] == "metric"


def test_every_picture_of_a_batch_is_saved(geometry, tmp_path):
    result = geometry("save_and_load", folder=str(tmp_path), kind="exr", batch=3)
    assert result["names"] == [
        [f"d 37_{number:05}_.exr" for number in numbers] for numbers in ((1, 2, 3), (4, 5, 6))
    ]
    assert geometry("save_and_load", folder=str(tmp_path), kind="npz", batch=3)["batch"] == 3


def test_files_that_cannot_be_are_refused_in_one_sentence(geometry, tmp_path):
    refusals = geometry("file_refusals", folder=str(tmp_path))
    wanted = {
        "outside": "Expected a prefix inside the output folder",
        "nothing valid": "Expected a valid pixel",
        "too deep": "larger scale",
    }
    wanted |= {
        "not there": (
            "Expected a depth file at file, got '../secret.npz', which is not in ComfyUI's input folder"
        )
    }
    for case, part in wanted.items():
        assert part in refusals[case] and "\n" not in refusals[case], case
    assert not list(tmp_path.iterdir())


def test_a_depth_is_upscaled_along_the_images_outline(geometry):
    result = geometry("upscaled", height=13, width=22)
    assert result["units"] == "metric" and result["shape"] == [1, 39, 66]
    assert result["left"] == pytest.approx([2.0] * len(result["left"]), rel=0.01)
    assert result["right"] == pytest.approx([4.0] * len(result["right"]), rel=0.01)
    assert (
        "at least the depth map's 22 x 13 pixels" in result["refusal"] or "aspect ratio" in result["refusal"]
    )


def test_depths_are_compared_aligned_and_given_normals(geometry):
    result = geometry("judged")
    assert result["before"][0] > 0.01 and max(result["after"][0], result["after"][4]) < 1e-5
    assert result["after"][1:4] == [1, 1, 1] and result["after"][6] < 0.1 and result["shown"]
    assert result["text"].startswith("image 0: scale 4, shift -0.4") and "metres" in result["text"]
    up, down = result["normals"]  # 30 degrees: half of green's range, the other way in DirectX
    np.testing.assert_allclose([up, down], [[0.5, 0.75, 0.933], [0.5, 0.25, 0.933]], atol=2e-3)
    assert (
        result["refusal"].endswith("Choose an alignment.")
        and "Expected a depth of the reference's" in result["size"]
    )


def test_a_stereo_pair_comes_with_its_holes(geometry):
    result = geometry("stereo", height=23, width=37)
    assert result["shapes"] == [[1, 23, 37, 3]] * 2 + [[1, 23, 37]] * 2
    assert (
        all(0 < share < 0.2 for share in result["holes"])
        and "Expected a view with an image" in result["refusal"]
    )


def test_cores_viewer_of_point_clouds_shows_the_picture(geometry):
    """It centres the bounding box, scales the farthest point to 1 and draws from position to target; fov is
    the user's to set there.
    """
    result = geometry("cloud_camera")
    vertex = plyfile.PlyData.read(io.BytesIO(bytes.fromhex(result["ply"])))["vertex"]
    points = np.stack([vertex[name] for name in "xyz"], axis=1).astype(float)
    points -= (points.max(0) + points.min(0)) / 2
    points /= np.linalg.norm(points, axis=1).max()
    camera, (height, width) = result["camera"], result["size"]
    eye, target = (np.array([camera[name][axis] for axis in "xyz"]) for name in ("position", "target"))
    np.testing.assert_allclose(
        (target - eye)[:2], 0, atol=1e-7
    )  # straight along -z, as the frame "camera" says
    x, y, z = (points - eye).T
    assert (target - eye)[2] < 0 and (z < 0).all()
    top = np.tan(np.radians(camera["fov"]) / 2)
    seen = np.stack(
        [(1 - y / -z / top) * height / 2, (1 + x / -z / (top * camera["aspect"])) * width / 2], axis=1
    )
    np.testing.assert_allclose(seen, np.array(result["pixels"]) + 0.5, atol=2e-3)


def read_glb(path):
    """The JSON of a GLB and its binary chunk, checked as far as Khronos's rules on containers and bounds go.
    """
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    gltf, rest = json.loads(data[20 : 20 + size]), 20 + size
    length, binary = struct.unpack_from("<I4s", data, rest)
    assert (kind, binary, size % 4, length % 4) == (b"JSON", b"BIN\0", 0, 0)
    chunk = data[rest + 8 :]
    assert len(chunk) == length == gltf["buffers"][0]["byteLength"]
    assert all(
        part["byteOffset"] % 4 == 0 and part["byteOffset"] + part["byteLength"] <= length
        for part in gltf["bufferViews"]
    )
    return gltf, chunk


def glb_picture(gltf, chunk, reference):
    part = gltf["bufferViews"][gltf["images"][gltf["textures"][reference["index"]]["source"]]["bufferView"]]
    with Image.open(
        io.BytesIO(chunk[part["byteOffset"] : part["byteOffset"] + part["byteLength"]])
    ) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(
    "shading", [{}, {"shading": "unlit"}, {"shading": "lit"}], ids=["as saved before", "unlit", "lit"]
)
def test_a_mesh_carries_its_picture(geometry, tmp_path, shading):
    """Unlit: light of its own on a surface that throws back none, so that no lamp of any viewer washes the
    picture out.
    """
    image = np.array(geometry("mesh_file", path=str(tmp_path / "mesh.glb"), shading=shading))
    gltf, chunk = read_glb(tmp_path / "mesh.glb")
    (primitive,) = gltf["meshes"][0]["primitives"]
    material, position = (
        gltf["materials"][primitive["material"]],
        gltf["accessors"][primitive["attributes"]["POSITION"]],
    )
    base = material["pbrMetallicRoughness"]
    np.testing.assert_allclose(
        glb_picture(gltf, chunk, base["baseColorTexture"]) / 255, image, atol=1.001 / 255
    )
    if shading == {"shading": "lit"}:
        assert (
            base["baseColorFactor"] == [1, 1, 1, 1]
            and base["metallicFactor"] == 0
            and "emissiveTexture" not in material
        )
    else:
        assert (
            base["baseColorFactor"] == [0, 0, 0, 1]
            and base["metallicFactor"] == 1
            and material["emissiveFactor"] == [1, 1, 1]
        )
        np.testing.assert_allclose(
            glb_picture(gltf, chunk, material["emissiveTexture"]) / 255, image, atol=1.001 / 255
        )
    (surface,) = trimesh.load(tmp_path / "mesh.glb").geometry.values()
    assert surface.bounds.tolist() == [position["min"], position["max"]] and position["type"] == "VEC3"
    assert (
        surface.visual.material.baseColorTexture.size == (37, 23)
        and len(surface.visual.uv) == position["count"]
    )


def test_a_mesh_without_a_picture_is_not_black(geometry, tmp_path):
    geometry("mesh_file", path=str(tmp_path / "mesh.glb"), shading={"shading": "unlit"}, picture=False)
    gltf, _ = read_glb(tmp_path / "mesh.glb")
    assert min(gltf["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"]) > 0.1 and "images" not in gltf
