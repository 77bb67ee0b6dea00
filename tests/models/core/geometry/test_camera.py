"""Cameras against hand-worked numbers and SciPy's rotations."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from spatialweave.models.core.geometry import camera


def test_intrinsics_of_a_right_angle_by_hand():
    """At 90 degrees the focal length is half the width; the principal point is the middle of the picture."""
    assert camera.intrinsics_from_fov(90, 640, 480).tolist() == pytest.approx(
        np.array([[320, 0, 320], [0, 320, 240], [0, 0, 1]])
    )


def test_intrinsics_and_fov_are_inverse():
    fov = torch.tensor([20.0, 55.0, 120.0])
    intrinsics = camera.intrinsics_from_fov(fov, 64, 48)
    assert intrinsics.shape == (3, 3, 3)
    horizontal, vertical = camera.fov_from_intrinsics(intrinsics, 64, 48)
    torch.testing.assert_close(horizontal, fov)
    torch.testing.assert_close(
        torch.tan(torch.deg2rad(vertical) / 2), torch.tan(torch.deg2rad(fov) / 2) * 48 / 64
    )


def test_fov_of_an_off_centre_camera_spans_both_sides():
    intrinsics = torch.tensor([[10.0, 0, 0], [0, 10, 10], [0, 0, 1]])
    horizontal, vertical = camera.fov_from_intrinsics(intrinsics, 10, 20)
    assert (float(horizontal), float(vertical)) == pytest.approx((45, 90))


@pytest.mark.parametrize("fov", [0, 180, -5, float("nan")])
def test_impossible_fov_is_refused(fov):
    with pytest.raises(ValueError, match="field of view above 0 and below 180 degrees, got "):
        camera.intrinsics_from_fov(fov, 4, 4)
    with pytest.raises(ValueError, match="of at least 1 pixel, got 0 x 4"):
        camera.intrinsics_from_fov(50, 0, 4)


def test_pixel_centers_start_at_a_half():
    centres = camera.pixel_centers(2, 3)
    assert centres.shape == (2, 3, 2)
    assert centres[0, 0].tolist() == [0.5, 0.5]
    assert centres[1, 2].tolist() == [2.5, 1.5]


def test_project_by_hand():
    """A point 1 right and 0.5 down at 2 away lies f / 2 right and f / 4 down of the middle."""
    intrinsics = camera.intrinsics_from_fov(90, 200, 100)
    pixels, depth = camera.project(torch.tensor([1.0, 0.5, 2.0]), intrinsics)
    assert pixels.tolist() == [150.0, 75.0]
    assert float(depth) == 2


def test_unproject_inverts_project_in_batches():
    random = torch.Generator().manual_seed(0)
    depth = torch.rand(2, 5, 7, generator=random) * 9 + 1
    intrinsics = camera.intrinsics_from_fov(torch.tensor([40.0, 100.0]), 7, 5)
    centres = camera.pixel_centers(5, 7).expand(2, 5, 7, 2)
    points = camera.unproject(centres, depth, intrinsics)
    assert points.shape == (2, 5, 7, 3)
    pixels, again = camera.project(points, intrinsics)
    torch.testing.assert_close(pixels, centres)
    torch.testing.assert_close(again, depth)
    torch.testing.assert_close(camera.unproject(centres[1], depth[1], intrinsics[1]), points[1])


def test_look_at_is_a_rotation_that_sees_the_target_ahead_and_up_above():
    random = torch.Generator().manual_seed(1)
    eye, target = torch.randn(20, 3, generator=random) * 3, torch.randn(20, 3, generator=random)
    pose = camera.look_at(eye, target)
    rotation = pose[:, :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(1, 2), torch.eye(3).expand(20, 3, 3), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(20))
    seen = (pose @ torch.cat([target, torch.ones(20, 1)], 1)[..., None])[:, :3, 0]
    torch.testing.assert_close(seen[:, :2], torch.zeros(20, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[:, 2], (target - eye).norm(dim=1))
    up = rotation @ torch.tensor([0.0, 1.0, 0.0])
    assert bool((up[:, 1] < 0).all())
    torch.testing.assert_close(up[:, 0], torch.zeros(20), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("height", "top"), [(5.0, (0.0, 0.0, -1.0)), (-5.0, (0.0, 0.0, 1.0))], ids=["down", "up"]
)
def test_look_at_along_the_pole(height, top):
    rotation = camera.look_at((0.0, height, 0.0), (0.0, 0.0, 0.0))[:3, :3]
    torch.testing.assert_close(-rotation[1], torch.tensor(top))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0))


def test_look_at_itself_is_refused():
    with pytest.raises(ValueError, match="an eye and a target that differ"):
        camera.look_at((1.0, 2.0, 3.0), (1.0, 2.0, 3.0))


def test_invert_pose_and_transform():
    pose = camera.look_at(torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.zeros(2, 3))
    torch.testing.assert_close(camera.invert_pose(pose), torch.linalg.inv(pose))
    points = torch.rand(2, 4, 5, 3)
    torch.testing.assert_close(
        camera.transform_points(camera.transform_points(points, pose), camera.invert_pose(pose)), points
    )
    torch.testing.assert_close(
        camera.transform_points(points[0], pose[0]), camera.transform_points(points, pose)[0]
    )


def three_js_projection(info, point):
    """Where three.js shows a world point, from 0 at the left and top to 1, out of the packet alone."""
    rotation = Rotation.from_quat([info["quaternion"][axis] for axis in "xyzw"])
    x, y, z = rotation.inv().apply(np.asarray(point) - [info["position"][axis] for axis in "xyz"])
    half = math.tan(math.radians(info["fov"]) / 2)
    return 0.5 + 0.5 * x / -z / (half * info["aspect"]), 0.5 - 0.5 * y / -z / half, -z


def test_camera_info_shows_the_world_as_our_camera_does():
    width, height, point = 96, 64, (0.3, 0.4, -0.2)
    intrinsics = camera.intrinsics_from_fov(50, width, height)
    intrinsics[0, 0] *= 1.3  # pixels need not be square
    pose = camera.look_at((1.0, 2.0, 3.0), (0.1, 0.2, 0.3))
    pixels, depth = camera.project(camera.transform_points(torch.tensor(point)[None], pose), intrinsics)
    shown = three_js_projection(
        camera.camera_info(intrinsics, width, height, pose, target_distance=2.5), point
    )
    assert shown == pytest.approx(
        (float(pixels[0, 0]) / width, float(pixels[0, 1]) / height, float(depth[0])), rel=1e-5
    )


def test_camera_info_target_lies_ahead():
    info = camera.camera_info(
        camera.intrinsics_from_fov(50, 4, 4),
        4,
        4,
        camera.look_at((1.0, 2, 3), (1.0, 2, -7)),
        target_distance=2,
    )
    assert [info["target"][axis] for axis in "xyz"] == pytest.approx([1, 2, 1])
    assert info["cameraType"] == "perspective" and info["zoom"] == 1


def test_camera_info_without_pose_sees_gltf_points_as_the_picture_does():
    intrinsics = camera.intrinsics_from_fov(60, 80, 60)
    pixels, depth = camera.project(torch.tensor([0.5, 0.25, 3.0]), intrinsics)
    shown = three_js_projection(camera.camera_info(intrinsics, 80, 60), (0.5, -0.25, -3.0))
    assert shown == pytest.approx((float(pixels[0]) / 80, float(pixels[1]) / 60, float(depth)))


def test_camera_info_takes_one_camera():
    with pytest.raises(ValueError, match="Expected one camera, "):
        camera.camera_info(torch.eye(3)[None], 4, 4)


def test_upright_world_turns_y_down_worlds():
    """The first camera of an OpenCV world is the identity; in the upright world it still sees its forward at
    -z.
    """
    pose = camera.upright_world(torch.eye(4))
    torch.testing.assert_close(
        camera.transform_points(torch.tensor([[1.0, -2.0, -3.0]]), pose), torch.tensor([[1.0, 2.0, 3.0]])
    )
