"""The ray caster against analytic geometry and triangle meshes in float64, neither of them our code."""

import numpy as np
import pytest
import torch
import trimesh

from spatialweave.models.world.render import render
from spatialweave.models.world.scene import FAR_METRES, apparent_circle, sample_scenes

SIZE = 48


def ground_depth(origin, directions):
    with np.errstate(divide="ignore"):
        depth = -origin[1] / directions[..., 1]
    return np.where((directions[..., 1] < 0) & (depth < FAR_METRES), depth, np.inf)


def room_depth(origin, directions, room):
    half, behind, front, height = room
    low, high = np.array([-half, 0.0, -behind]), np.array([half, height, front])
    return (np.where(directions > 0, high, low) - origin)[..., :] / directions


def sphere_depth(origin, directions, center, extents):
    """An ellipsoid: a unit sphere once space is divided by its half sizes."""
    o, d = (origin - center) / extents, directions / extents
    a, half, c = (d * d).sum(-1), (d @ o), (o @ o) - 1
    disc = half * half - a * c
    return np.where(disc > 0, (-half - np.sqrt(np.maximum(disc, 0))) / a, np.inf)


def mesh_depth(origin, directions, mesh):
    """The nearest triangle along each ray (Moeller and Trumbore)."""
    first, second, third = (np.asarray(mesh.triangles, dtype=np.float64)[:, i] for i in range(3))
    one, two, start = second - first, third - first, origin - first
    flat = directions.reshape(-1, 1, 3)
    p = np.cross(flat, two)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / (p * one).sum(-1)
        u = (p * start).sum(-1) * inverse
        q = np.cross(start, one)
        v = (flat * q).sum(-1) * inverse
        depth = (q * two).sum(-1) * inverse
    depth = np.where((u >= 0) & (v >= 0) & (u + v <= 1) & (depth > 0), depth, np.inf)
    return depth.min(1).reshape(directions.shape[:-1])


def solid_mesh(item):
    """The solid as trimesh makes it, upright along y, turned by +yaw about y (right-handed), standing at its
    place."""
    if item.shape == "box":
        mesh = trimesh.creation.box(extents=2 * np.array(item.extents))
    else:
        radius, height = item.extents[0], 2 * item.extents[1]
        make = trimesh.creation.cylinder if item.shape == "cylinder" else trimesh.creation.cone
        mesh = make(radius=radius, height=height, sections=256)
        if item.shape == "cone":
            mesh.apply_translation((0, 0, -height / 2))
        mesh.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, (1, 0, 0)))
    mesh.apply_transform(trimesh.transformations.rotation_matrix(np.radians(item.yaw), (0, 1, 0)))
    mesh.apply_translation(item.center)
    return mesh


def test_ball_and_ground_depth_is_analytic(make_scene, make_object, look):
    item = make_object("ball", extents=(0.6, 0.6, 0.6))
    scene = make_scene(item)
    origin, directions, _, _ = look(scene, SIZE, SIZE)
    exact = np.minimum(
        sphere_depth(origin, directions, np.array(item.center), np.array(item.extents)),
        ground_depth(origin, directions),
    )
    depth = render([scene], SIZE, SIZE, samples=1).depth[0].numpy()
    assert (np.isinf(depth) == np.isinf(exact)).all()
    seen = np.isfinite(exact)
    np.testing.assert_allclose(depth[seen], exact[seen], rtol=2e-5)


def test_room_depth_is_analytic(make_scene, make_object, look):
    scene = make_scene(make_object("ball", position=(2.4, 0.5), extents=(0.3, 0.3, 0.3)), indoors=True)
    origin, directions, _, _ = look(scene, SIZE, 64)
    exact = room_depth(origin, directions, scene.surroundings.room).min(-1)
    frames = render([scene], SIZE, 64, samples=1)
    walls = frames.segmentation[0].numpy() == 0
    assert walls.mean() > 0.5
    np.testing.assert_allclose(frames.depth[0].numpy()[walls], exact[walls], rtol=2e-5)


@pytest.mark.parametrize(
    "shape, yaw", [("box", 0.0), ("box", 28.0), ("box", 71.0), ("cylinder", 10.0), ("cone", 0.0)]
)
def test_solids_match_triangle_meshes(make_scene, make_object, look, shape, yaw):
    extents = (0.7, 0.8, 0.5) if shape == "box" else (0.6, 0.8, 0.6)
    item = make_object(shape, extents=extents, yaw=yaw)
    scene = make_scene(item)
    origin, directions, _, _ = look(scene, SIZE, SIZE)
    exact = mesh_depth(origin, directions, solid_mesh(item))
    frames = render([scene], SIZE, SIZE, samples=1)
    hit, depth = frames.segmentation[0].numpy() == 1, frames.depth[0].numpy()
    assert (hit != np.isfinite(exact)).sum() <= 2, (
        "a mesh's rim is a polygon: single pixels of the outline may differ"
    )
    both = hit & np.isfinite(exact)
    assert both.sum() > 80
    error = np.abs(depth[both] - exact[both])
    assert np.quantile(error, 0.98) < 5e-4 and error.max() < 2e-2, (np.quantile(error, 0.98), error.max())


def test_points_lie_on_their_surfaces(make_scene, make_object, look):
    """Unprojected with the frames' own intrinsics and pose, every pixel satisfies the equation of what it
    shows."""
    ball = make_object("ball", "red", (-0.8, 0.0))
    tube = make_object("cylinder", "blue", (0.7, 0.4), extents=(0.4, 0.6, 0.4))
    cone = make_object("cone", "green", (0.1, -2.4), extents=(0.6, 0.9, 0.6))
    scene = make_scene(ball, tube, cone)
    frames = render([scene], 96, 128, samples=1)
    points, segmentation = world_points(frames), frames.segmentation[0].numpy()
    assert np.abs(points[segmentation == 0][:, 1]).max() < 1e-4

    def local(item, label):
        return (points[segmentation == label] - item.center) / item.extents

    x = local(ball, 1)
    np.testing.assert_allclose((x * x).sum(-1), 1, atol=1e-4)
    x = local(tube, 2)
    np.testing.assert_allclose(np.maximum(np.hypot(x[:, 0], x[:, 2]), np.abs(x[:, 1])), 1, atol=1e-4)
    x = local(cone, 3)
    assert len(x) > 80
    np.testing.assert_allclose(np.hypot(x[:, 0], x[:, 2]), (1 - x[:, 1]) / 2, atol=5e-4)


def world_points(frames):
    """h w 3 of the first picture, in float64."""
    depth, matrix, pose = (
        value[0].double().numpy() for value in (frames.depth, frames.intrinsics, frames.world_to_cam)
    )
    height, width = depth.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    cam = (
        np.stack((x, y, np.ones_like(x)), -1)
        @ np.linalg.inv(matrix).T
        * np.where(np.isfinite(depth), depth, 0)[..., None]
    )
    return (cam - pose[:3, 3]) @ pose[:3, :3]


def test_normals_are_the_gradient_of_the_points(make_scene, make_object):
    scene = make_scene(
        make_object("ball", "red", (-1.0, 0.2), (0.6, 0.6, 0.6)),
        make_object("box", "blue", (0.9, 0.5), (0.5, 0.5, 0.4), 33.0),
        make_object("cone", "green", (0.2, -1.6), (0.6, 0.8, 0.6)),
        indoors=True,
    )
    frames = render([scene], 160, 160, samples=1)
    pose, normals, labels = (
        frames.world_to_cam[0].double().numpy(),
        frames.normals[0].double().numpy(),
        frames.segmentation[0].numpy(),
    )
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    points = world_points(frames) @ pose[:3, :3].T + pose[:3, 3]
    assert ((points * normals).sum(-1) < 1e-6).all(), "normals face the camera"
    measured = np.cross(points[2:, 1:-1] - points[:-2, 1:-1], points[1:-1, 2:] - points[1:-1, :-2])
    measured /= np.linalg.norm(measured, axis=-1, keepdims=True)
    cosine = np.abs((measured * normals[1:-1, 1:-1]).sum(-1))
    smooth = np.ones_like(cosine, dtype=bool)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            there = slice(dy, dy + cosine.shape[0]), slice(dx, dx + cosine.shape[1])
            smooth &= (labels[there] == labels[1:-1, 1:-1]) & (
                (normals[there] * normals[1:-1, 1:-1]).sum(-1) > np.cos(np.radians(15))
            )
    assert smooth.mean() > 0.85
    degrees = np.degrees(np.arccos(np.clip(cosine[smooth], -1, 1)))
    assert np.median(degrees) < 0.1 and np.quantile(degrees, 0.99) < 2.0, (
        np.median(degrees),
        np.quantile(degrees, 0.99),
    )


def test_cameras_match_their_definition(make_scene, make_object, look):
    scene = make_scene(make_object())
    for height, width in ((64, 64), (48, 96), (96, 48)):
        frames = render([scene], height, width, samples=1)
        origin, _, rotation, focal = look(scene, height, width)
        np.testing.assert_allclose(
            frames.intrinsics[0], [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], rtol=1e-6
        )
        np.testing.assert_allclose(frames.world_to_cam[0, :3, :3], rotation, atol=1e-6)
        np.testing.assert_allclose(frames.world_to_cam[0, :3, 3], -rotation @ origin, atol=1e-6)


def test_projected_centres_are_where_apparent_circle_says():
    scenes = sample_scenes(4, 12)
    frames = render(scenes, 64, 64, samples=1)
    for scene, matrix, pose in zip(
        scenes, frames.intrinsics.double().numpy(), frames.world_to_cam.double().numpy(), strict=True
    ):
        for item in scene.objects:
            x, y, z = matrix @ (pose[:3, :3] @ item.center + pose[:3, 3])
            circle = apparent_circle(item, scene.camera)
            np.testing.assert_allclose((x / z / 32 - 1, y / z / 32 - 1, z), circle[:3], atol=1e-5)


def test_a_lone_ball_is_seen_at_its_projected_centre(make_scene, make_object):
    for position in ((0.0, 0.0), (-1.2, -0.6), (1.0, 1.0)):
        scene = make_scene(make_object("ball", position=position))
        row, column = torch.nonzero(render([scene], 128, 128, samples=1).segmentation[0] == 1, as_tuple=True)
        x, y, _, radius = apparent_circle(scene.objects[0], scene.camera)
        assert (
            abs(column.float().mean() + 0.5 - 64 * (x + 1)) < 1.5
            and abs(row.float().mean() + 0.5 - 64 * (y + 1)) < 1.5
        )
        assert abs((len(row) / np.pi) ** 0.5 - 64 * radius) < 1.5
