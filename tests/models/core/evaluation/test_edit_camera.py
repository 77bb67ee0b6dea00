"""The camera's motion, on a floor and a wall that numpy traces ray by ray with scipy's rotations."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from spatialweave.models.core.evaluation.edit_camera import estimate_motion, orbit_pose
from spatialweave.models.core.evaluation.edit_viewpoint import describe_motion, find_up, viewpoint_error
from spatialweave.models.core.geometry.view import View

HEIGHT, WIDTH, FOCAL, PITCH = 96, 128, 120.0, 15.0
PIVOT = 5.0  # metres ahead of the camera


def trace(to_world, eye, focal=FOCAL):
    """Image and z-depth of a floor 1.5 metres below the first camera and a wall, in a world with y down."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(x - WIDTH / 2) / focal, (y - HEIGHT / 2) / focal, np.ones_like(x)], -1) @ to_world.T
    with np.errstate(divide="ignore"):
        floor, wall = (1.5 - eye[1]) / rays[..., 1], (9 - eye[2]) / rays[..., 2]
    floor, wall = np.where(floor > 0, floor, np.inf), np.where(wall > 0, wall, np.inf)
    depth = np.minimum(floor, wall)
    point = eye + rays * depth[..., None]
    u, v = point[..., 0], np.where(floor < wall, point[..., 2], 3 * point[..., 1])
    waves = [np.sin(2.1 * u + 0.7 * v), np.sin(1.3 * v - 0.8 * u + 1), np.cos(0.5 * u * v + 2 * u)]
    mix = [
        0.5 + 0.2 * waves[0] + 0.1 * waves[2],
        0.5 + 0.2 * waves[1],
        0.5 + 0.15 * waves[2] - 0.1 * waves[0],
    ]
    return np.stack(mix, -1).astype(np.float32), depth.astype(np.float32)


def camera(yaw=0.0, pitch=0.0, distance=1.0):
    """Orientation and position of a camera that looks down by PITCH, after an orbit about PIVOT."""
    first = Rotation.from_euler("x", -PITCH, degrees=True)
    target = first.apply([0, 0, PIVOT])
    turn = (
        Rotation.from_euler("y", -yaw, degrees=True) * Rotation.from_euler("x", -pitch, degrees=True) * first
    )
    return turn.as_matrix(), target - distance * turn.apply([0, 0, PIVOT])


def pose_between(first, second):
    """Points of the first camera to the second."""
    pose = np.eye(4)
    pose[:3, :3] = second[0].T @ first[0]
    pose[:3, 3] = second[0].T @ (first[1] - second[1])
    return torch.from_numpy(pose).float()


def matrix(focal=FOCAL):
    return torch.tensor([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])


def measure(second, focal=FOCAL, gain=1.0):
    before, depth = trace(*camera())
    after, _ = trace(*second, focal=focal)
    view = View.from_depth(torch.from_numpy(depth)[None], units="metric", intrinsics=matrix()[None])
    images = torch.from_numpy(before), (torch.from_numpy(after) * gain).clamp(0, 1)
    motion = estimate_motion(*images, view.depth[0], matrix(), static=view.mask[0])
    return motion, view


CASES = [(0, 0, 1.0), (20, 0, 1.0), (-35, 0, 1.0), (0, 10, 1.0), (15, -8, 1.0), (0, 0, 0.8), (0, 0, 1.25)]


@pytest.mark.parametrize(("yaw", "pitch", "distance"), CASES)
def test_an_orbit_is_found_in_degrees_and_metres(yaw, pitch, distance):
    second = camera(yaw, pitch, distance)
    motion, view = measure(second)
    assert motion.is_found and motion.focal_ratio == pytest.approx(1, abs=1e-3)
    expected = pose_between(camera(), second)
    torch.testing.assert_close(motion.pose[:3, :3], expected[:3, :3], atol=0.009, rtol=0)  # half a degree
    assert float((motion.pose - expected)[:3, 3].norm()) < max(0.05, 0.02 * float(expected[:3, 3].norm()))
    up = find_up(view, matrix()[None])
    upright = np.array([0, -1, 0]) @ camera()[0]  # the world's up in the camera's frame
    assert float(up @ torch.from_numpy(upright).float()) > 0.9999
    seen = describe_motion(motion, view, up)
    assert (
        seen.yaw_degrees == pytest.approx(yaw, abs=0.5)
        and seen.pitch_degrees == pytest.approx(pitch, abs=0.5)
    )


def test_a_longer_focal_length_is_no_motion():
    motion, _ = measure(camera(), focal=1.3 * FOCAL)
    assert motion.focal_ratio == pytest.approx(1.3, rel=0.01)
    torch.testing.assert_close(motion.pose, torch.eye(4), atol=0.01, rtol=0)


def test_a_darker_image_moves_no_camera():
    motion, _ = measure(camera(20), gain=0.95)
    torch.testing.assert_close(motion.pose, pose_between(camera(), camera(20)), atol=0.03, rtol=0)


def test_the_distance_is_measured_to_the_crossing_of_the_axes():
    motion, view = measure(camera(25, 0, 1.2))
    seen = describe_motion(motion, view, find_up(view, matrix()[None]))
    assert (
        seen.pivot == pytest.approx(PIVOT, rel=0.03)
        and seen.distance_ratio == pytest.approx(1.2, rel=0.03)
    )
    assert seen.magnification == pytest.approx(1 / 1.2, rel=0.03)


def test_the_orbit_of_a_request_is_that_of_its_angles():
    up = torch.tensor(np.array([0, -1, 0]) @ camera()[0])
    numbers = (torch.tensor(value) for value in (30.0, -10.0, PIVOT, 1.1))
    torch.testing.assert_close(
        orbit_pose(*numbers, up=up), pose_between(camera(), camera(30, -10, 1.1)), atol=1e-5, rtol=0
    )


def test_the_viewpoint_error_is_that_of_the_benchmark():
    """Half of the centers' distance, relative to the requested one, and of the angle over 90 degrees."""
    motion, view = measure(camera(20))
    up = find_up(view, matrix()[None])
    seen = describe_motion(motion, view, up)
    assert viewpoint_error(motion, seen, up, yaw=20, pitch=0) < 0.02
    wrong = np.linalg.norm(camera(20)[1] - camera(-20)[1]) / np.linalg.norm(camera(-20)[1])
    assert viewpoint_error(motion, seen, up, yaw=-20, pitch=0) == pytest.approx(
        0.5 * (wrong + 40 / 90), rel=0.03
    )
    assert viewpoint_error(motion, seen, up, yaw=0, pitch=0) is None


def test_too_few_background_pixels_are_refused():
    image = torch.rand(32, 32, 3)
    nothing = torch.zeros(32, 32, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least 64 background pixels with a depth, got 0"):
        estimate_motion(image, image, torch.ones(32, 32), matrix(), static=nothing)
