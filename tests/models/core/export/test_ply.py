"""PLY against plyfile and trimesh."""

import numpy as np
import plyfile
import pytest
import torch
import trimesh

from spatialweave.models.core.export import ply
from spatialweave.models.core.export.ply import encode_ply, encode_point_cloud, write_ply
from spatialweave.models.core.geometry.camera import intrinsics_from_fov, look_at
from spatialweave.models.core.geometry.points import view_to_point_cloud, viewer_pose
from spatialweave.models.core.geometry.view import View

POINTS = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.5, 6.0], [0.0, 0.0, 1e-3]])
COLOURS = torch.tensor([[1.0, 0.0, 0.5], [0.25, 2.0, -1.0], [0.0, 0.0, 0.0]])
NORMALS = torch.tensor([[0.0, 0.6, -0.8], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
FLIP = np.array([1, -1, -1], np.float32)


@pytest.mark.parametrize(("axes", "flip"), [("gltf", FLIP), ("opencv", np.ones(3))])
def test_plyfile_reads_what_was_written(tmp_path, axes, flip):
    write_ply(tmp_path / "p.ply", POINTS, COLOURS, NORMALS, axes=axes, comments=["units: metric"])
    data = plyfile.PlyData.read(tmp_path / "p.ply")
    assert not data.text and data.byte_order == "<"
    vertex = data["vertex"]
    np.testing.assert_array_equal(np.stack([vertex["x"], vertex["y"], vertex["z"]], 1), POINTS.numpy() * flip)
    np.testing.assert_array_equal(
        np.stack([vertex["nx"], vertex["ny"], vertex["nz"]], 1), NORMALS.numpy() * flip
    )
    levels = np.stack([vertex["red"], vertex["green"], vertex["blue"]], 1)
    assert levels.dtype == np.uint8 and levels.tolist() == [[255, 0, 128], [64, 255, 0], [0, 0, 0]]
    assert data.comments[0].startswith("axes: ") and ("glTF" in data.comments[0]) == (axes == "gltf")
    assert data.comments[1] == "units: metric"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_chunks_are_one_file(monkeypatch, dtype):
    given = [tensor.to(dtype) for tensor in (POINTS, COLOURS, NORMALS)]
    whole = encode_ply(*given)
    monkeypatch.setattr(ply, "CHUNK", 2)
    assert encode_ply(*given) == whole
    with pytest.raises(ValueError, match="got 1 of 3 NaN or infinite"):
        encode_ply(torch.cat([POINTS[:2], torch.full((1, 3), float("inf"))]))


def test_trimesh_sees_a_coloured_cloud(tmp_path):
    path = write_ply(tmp_path / "p.ply", POINTS, COLOURS)
    cloud = trimesh.load(path)
    assert isinstance(cloud, trimesh.PointCloud)
    np.testing.assert_allclose(cloud.vertices, POINTS.numpy() * FLIP)
    assert cloud.colors[0].tolist()[:3] == [255, 0, 128]


def test_points_alone():
    header = encode_ply(POINTS).split(b"end_header\n")[0].decode()
    assert "element vertex 3" in header and "red" not in header and "nx" not in header


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((POINTS[:0],), r"Expected points \(n, 3\), at least one, got \(0, 3\)"),
        ((POINTS[None],), r"Expected points \(n, 3\), at least one, got \(1, 3, 3\)"),
        ((POINTS, COLOURS[:2]), r"Expected colors \(3, 3\), one row a point, got \(2, 3\)"),
        ((POINTS, None, NORMALS[:, :2]), r"Expected normals \(3, 3\), one row a point, got \(3, 2\)"),
        ((POINTS * float("nan"),), "got 3 of 3 NaN or infinite"),
    ],
)
def test_bad_clouds_are_worded(arguments, message):
    with pytest.raises(ValueError, match=message):
        encode_ply(*arguments)


def test_bad_axes_and_comments_are_worded():
    with pytest.raises(ValueError, match="Expected axes of .*, got 'blender'"):
        encode_ply(POINTS, axes="blender")
    with pytest.raises(ValueError, match="one line of ASCII"):
        encode_ply(POINTS, comments=["two\nlines"])


def test_a_cloud_is_moved_to_its_place_in_the_world(tmp_path):
    """A camera 5 m from the world's origin looks at it, from above."""
    pose = look_at((0.0, 3.0, 4.0), (0.0, 0.0, 0.0))
    depth = torch.full((1, 1, 1), 5.0)
    normals = torch.tensor([[[[0.0, 0.0, -1.0]]]])
    view = View.from_depth(
        depth, units="metric", intrinsics=intrinsics_from_fov(60.0, 1, 1), normals=normals, world_to_cam=pose
    )
    (cloud,) = view_to_point_cloud(view, edge_rtol=0)
    (tmp_path / "p.ply").write_bytes(encode_point_cloud(cloud, viewer_pose(view, "world")[0]))
    vertex = plyfile.PlyData.read(tmp_path / "p.ply")["vertex"]
    np.testing.assert_allclose([vertex[name][0] for name in ("x", "y", "z")], [0, 0, 0], atol=1e-6)
    np.testing.assert_allclose([vertex[name][0] for name in ("nx", "ny", "nz")], [0, 0.6, 0.8], atol=1e-6)
    own = encode_point_cloud(cloud, viewer_pose(view, "camera")[0])
    assert np.frombuffer(own.split(b"end_header\n")[1], "<f4", 6).tolist() == [0, 0, -5, 0, 0, 1]


def test_an_empty_cloud_names_the_edge_threshold():
    view = View.from_depth(torch.zeros(1, 2, 2), units="metric")
    (cloud,) = view_to_point_cloud(view, fov_degrees=60.0)
    with pytest.raises(
        ValueError,
        match=r"^Expected at least one point, got none.*Raise the edge threshold, or set it to 0\.$",
    ):
        encode_point_cloud(cloud, torch.eye(4))
