"""Grid meshes against trimesh's rays and counts that can be done by hand."""

import numpy as np
import pytest
import torch
import trimesh

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.geometry import mesh
from spatialweave.models.core.geometry.camera import intrinsics_from_fov
from spatialweave.models.core.geometry.mesh import view_to_mesh
from spatialweave.models.core.geometry.points import depth_to_points, view_camera, viewer_pose
from spatialweave.models.core.geometry.view import View


def make(depth, **others):
    return View.from_depth(depth, units="metric", **others)


def slope(height=12, width=17):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (3 + 0.05 * x + 0.02 * y).float()[None]


@pytest.mark.parametrize("band", [1, 5, 1000])
@pytest.mark.parametrize("stride", [1, 3])
def test_bands_of_rows_are_one_mesh(monkeypatch, band, stride):
    depth = slope() + (torch.rand(1, 12, 17, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    depth[0, 4:6, 3:9] = float("nan")
    (whole,) = view_to_mesh(make(depth), fov_degrees=60.0, stride=stride)
    monkeypatch.setattr(mesh, "BAND", band)
    (banded,) = view_to_mesh(make(depth), fov_degrees=60.0, stride=stride)
    for name in ("vertices", "faces", "uvs", "pixels"):
        assert torch.equal(getattr(whole, name), getattr(banded, name))
    assert len(whole.faces) and int(whole.faces.max()) == len(whole.vertices) - 1


def test_a_smooth_surface_is_whole_and_has_every_pixel():
    view = make(slope())
    (mesh,) = view_to_mesh(view, fov_degrees=60.0)
    assert len(mesh.vertices) == 12 * 17 and len(mesh.faces) == 2 * 11 * 16
    want = depth_to_points(view.depth, intrinsics_from_fov(60.0, 17, 12)[None])[0].reshape(-1, 3)
    assert_close(mesh.vertices, want)
    assert_close(mesh.uvs[0], torch.tensor([0.5 / 17, 0.5 / 12]))
    assert_close(mesh.uvs[-1], torch.tensor([16.5 / 17, 11.5 / 12]))


def test_triangles_face_the_camera():
    """In glTF's axes, counter-clockwise triangles face where their normal points: here, towards the origin.
    """
    (mesh,) = view_to_mesh(make(slope()), fov_degrees=60.0)
    surface = trimesh.Trimesh(mesh.vertices.numpy() * [1, -1, -1], mesh.faces.numpy(), process=False)
    towards = -surface.triangles_center
    assert ((surface.face_normals * towards).sum(axis=1) > 0).all()


def test_a_ray_through_each_pixel_meets_its_depth():
    view = make(slope(), intrinsics=intrinsics_from_fov(60.0, 17, 12))
    (mesh,) = view_to_mesh(view)
    surface = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    rays = (
        depth_to_points(torch.ones(1, 12, 17), view.intrinsics)[0, 1:-1, 1:-1].reshape(-1, 3).double().numpy()
    )
    places, hit, _ = surface.ray.intersects_location(np.zeros_like(rays), rays, multiple_hits=False)
    assert len(np.unique(hit)) == len(rays)
    np.testing.assert_allclose(places[:, 2], view.depth[0, 1:-1, 1:-1].reshape(-1).numpy()[hit], rtol=1e-4)


def test_no_triangle_crosses_a_depth_edge_and_none_is_lost_elsewhere():
    depth = torch.full((1, 6, 8), 2.0)
    depth[..., 3:] = 4.0
    (mesh,) = view_to_mesh(make(depth), fov_degrees=60.0)
    corners = mesh.vertices[mesh.faces][..., 2]
    assert (corners.amax(1) == corners.amin(1)).all()
    assert len(mesh.faces) == 2 * 5 * (2 + 4) and len(mesh.vertices) == 48
    (bridged,) = view_to_mesh(make(depth), fov_degrees=60.0, edge_rtol=0)
    assert len(bridged.faces) == 2 * 5 * 7


@pytest.mark.parametrize("corner", [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_a_hole_in_a_corner_costs_one_triangle(corner):
    depth = torch.full((1, 3, 4), 2.0)
    depth[0][corner] = float("nan")
    (mesh,) = view_to_mesh(make(depth), fov_degrees=60.0)
    assert len(mesh.faces) == 2 * 2 * 3 - 1 and len(mesh.vertices) == 11
    assert list(corner) not in mesh.pixels.tolist()


def test_stride_keeps_the_borders_and_the_truth():
    view = make(slope())
    (mesh,) = view_to_mesh(view, fov_degrees=60.0, stride=5)
    assert mesh.pixels[:, 0].unique().tolist() == [0, 5, 10, 11] and mesh.pixels[:, 1].unique().tolist() == [
        0,
        5,
        10,
        15,
        16,
    ]
    assert (
        torch.equal(mesh.vertices[:, 2], view.depth[0][tuple(mesh.pixels.T)]) and len(mesh.faces) == 2 * 3 * 4
    )


def test_one_mesh_per_picture_without_stray_vertices():
    depth = torch.full((2, 3, 3), 2.0)
    depth[1, 0] = 0
    depth[1, 2] = 0
    whole, strip = view_to_mesh(make(depth), fov_degrees=60.0)
    assert len(whole.faces) == 8 and len(strip.faces) == 0 and len(strip.vertices) == 0
    with pytest.raises(
        ValueError, match="Expected at least one triangle, got none: every pixel is invalid or a depth edge"
    ):
        strip.require_faces()
    assert whole.require_faces() is whole


def test_a_stride_of_nothing_is_refused():
    with pytest.raises(ValueError, match="Expected a stride of at least 1, got 0"):
        view_to_mesh(make(slope()), fov_degrees=60.0, stride=0)


def test_the_world_of_a_view_without_pose_is_refused():
    for make_it in (
        lambda view: viewer_pose(view, "world"),
        lambda view: view_camera(view, fov_degrees=60.0, frame="world"),
    ):
        with pytest.raises(
            ValueError, match="Expected a view with a pose for the frame 'world', got one without"
        ):
            make_it(make(slope()))


def test_the_viewers_camera_holds_the_whole_depth():
    info = view_camera(make(slope()), fov_degrees=60.0)
    assert info["near"] < 3 and info["far"] > 4.02
    assert info["target"]["z"] == pytest.approx(-float(slope().median()))
