"""Points against planes and boxes whose coordinates are known."""

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.geometry import points as module
from spatialweave.models.core.geometry.camera import intrinsics_from_fov, look_at, project, transform_points
from spatialweave.models.core.geometry.points import (
    depth_edges,
    depth_to_points,
    find_outliers,
    point_cloud_camera,
    view_camera,
    view_to_point_cloud,
    viewer_pose,
)
from spatialweave.models.core.geometry.view import View


def test_a_fronto_parallel_plane_has_its_width():
    depth = torch.full((1, 4, 8), 2.0)
    points = depth_to_points(depth, intrinsics_from_fov(90.0, 8, 4)[None])
    # 90 degrees at 2 m is 4 m wide: eight pixels of half a metre, the first centred at -1.75
    assert_close(points[0, 0, :, 0], torch.arange(8) * 0.5 - 1.75)
    assert_close(points[0, :, 0, 1], torch.arange(4) * 0.5 - 0.75)
    assert (points[..., 2] == 2).all()


def test_edges_are_where_depth_jumps_and_round_holes():
    depth = torch.full((1, 5, 8), 1.0)
    depth[..., 4:] = 1.5
    assert depth_edges(depth, 0.1)[0, 0].tolist() == [False] * 3 + [True] * 2 + [False] * 3
    hole = torch.full((1, 5, 5), 1.0)
    hole[0, 2, 2] = 0
    assert depth_edges(hole, 0.1)[0].sum() == 9


def test_a_slope_within_tolerance_is_no_edge():
    depth = torch.linspace(1, 1.1, 11).expand(1, 5, 11)
    assert not depth_edges(depth, 0.04).any()


def test_cloud_holds_valid_pixels_with_their_colours():
    depth = torch.full((2, 3, 3), 1.0)
    depth[1, 0, 0] = float("nan")
    image = torch.arange(54.0).reshape(2, 3, 3, 3) / 54
    view = View.from_depth(depth, units="metric", image=image)
    whole, holed = view_to_point_cloud(view, fov_degrees=65.0, edge_rtol=0)
    assert len(whole.points) == 9 and len(holed.points) == 8
    assert holed.pixels[0].tolist() == [0, 1]
    assert torch.equal(holed.colors, image[1].reshape(9, 3)[1:])
    assert whole.normals is None
    assert [len(cloud.points) for cloud in view_to_point_cloud(view, fov_degrees=65.0)] == [9, 5]


def test_too_many_points_become_a_seeded_choice_in_order():
    view = View.from_depth(torch.full((1, 20, 20), 1.0), units="relative")
    (cloud,) = view_to_point_cloud(view, fov_degrees=65.0, max_points=100)
    (again,) = view_to_point_cloud(view, fov_degrees=65.0, max_points=100)
    (other,) = view_to_point_cloud(view, fov_degrees=65.0, max_points=100, seed=1)
    index = cloud.pixels[:, 0] * 20 + cloud.pixels[:, 1]
    assert len(index) == 100 and (index.diff() > 0).all()
    assert torch.equal(cloud.pixels, again.pixels) and not torch.equal(cloud.pixels, other.pixels)


def test_the_views_own_camera_goes_before_a_field_of_view():
    depth = torch.full((1, 4, 4), 1.0)
    view = View.from_depth(depth, units="relative", intrinsics=intrinsics_from_fov(40.0, 4, 4))
    (cloud,) = view_to_point_cloud(view, fov_degrees=90.0)
    (wanted,) = view_to_point_cloud(View.from_depth(depth, units="relative"), fov_degrees=40.0)
    assert_close(cloud.points, wanted.points)


def test_without_any_camera_the_error_names_the_cure():
    view = View.from_depth(torch.ones(1, 4, 4), units="relative")
    with pytest.raises(
        ValueError, match="Expected a view with a camera, got one without, so its points have no position"
    ):
        view_to_point_cloud(view)


def test_centred_cloud_has_its_median_in_the_origin():
    view = View.from_depth(
        torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(0)) + 1, units="relative"
    )
    (cloud,) = view_to_point_cloud(view, fov_degrees=65.0, edge_rtol=0)
    assert_close(cloud.centered().points.quantile(0.5, dim=0), torch.zeros(3), atol=1e-6)
    (empty,) = view_to_point_cloud(View.from_depth(torch.zeros(1, 2, 2), units="relative"), fov_degrees=65.0)
    assert empty.centered().points.shape == (0, 3)


def test_a_far_point_is_an_outlier():
    grid = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij"), dim=-1).reshape(
        -1, 2
    )
    cloud = torch.cat([torch.cat([grid, torch.zeros(36, 1)], dim=1), torch.tensor([[50.0, 50.0, 0.0]])])
    assert find_outliers(cloud).nonzero().flatten().tolist() == [36]
    assert not find_outliers(cloud[:4]).any()


def test_outlier_removal_refuses_what_would_take_hours(monkeypatch):
    monkeypatch.setattr(module, "MAX_OUTLIER_POINTS", 10)
    with pytest.raises(
        ValueError, match="Expected at most 10 points for outlier removal, which compares every pair, got 11"
    ):
        find_outliers(torch.zeros(11, 3))


def rough_view(**others):
    depth = torch.rand(1, 9, 14, generator=torch.Generator().manual_seed(0)) * 3 + 1
    return View.from_depth(depth, units="metric", intrinsics=intrinsics_from_fov(70.0, 14, 9), **others)


def places(info):
    return [
        torch.tensor([info[name][axis] for axis in "xyz"], dtype=torch.float64)
        for name in ("position", "target")
    ]


@pytest.mark.parametrize("frame", ["camera", "world"])
def test_the_point_cloud_viewer_sees_each_point_in_its_pixel(frame):
    """It makes the sphere round the bounding box's middle the unit sphere; seen by the camera made for that,
    nothing has moved.
    """
    pose = look_at((1.0, 2.0, 3.0), (0.3, 0.2, 0.1)).unsqueeze(0)
    view = rough_view(world_to_cam=pose)
    (cloud,) = view_to_point_cloud(view, edge_rtol=0)
    info, true = point_cloud_camera(view, cloud, frame=frame), view_camera(view, frame=frame)
    shown = transform_points(cloud.points, viewer_pose(view, frame)[0]).double()
    shown = shown - (shown.amax(0) + shown.amin(0)) / 2
    shown = shown / shown.norm(dim=1).max()
    eye, target = places(info)
    pixels, depth = project(
        transform_points(shown, look_at(eye, target).double()), view.intrinsics[0].double()
    )
    assert_close(pixels.float(), cloud.pixels.flip(-1) + 0.5, atol=2e-3)
    ratio = depth / view.depth.flatten()
    assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-4 * float(ratio[0]))
    assert info["near"] == pytest.approx(true["near"] * float(ratio[0])) and info["far"] == pytest.approx(
        true["far"] * float(ratio[0])
    )
    assert {name: info[name] for name in ("fov", "aspect", "zoom")} == {
        name: true[name] for name in ("fov", "aspect", "zoom")
    }


def test_a_cloud_of_one_point_keeps_its_size():
    view = View.from_depth(
        torch.full((1, 1, 1), 2.0), units="metric", intrinsics=intrinsics_from_fov(60.0, 1, 1)
    )
    (cloud,) = view_to_point_cloud(view, edge_rtol=0)
    info = point_cloud_camera(view, cloud)
    assert info["position"] == {"x": 0, "y": 0, "z": 2} and info["target"] == {"x": 0, "y": 0, "z": 0}
