"""Fused clouds against the exact surfaces of the world's scenes, in NumPy; floaters are injected by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatialweave.models.core.geometry.fusion import FusionSettings, fuse_views
from spatialweave.models.core.geometry.view import View
from spatialweave.models.world.multiview import render_views, sample_cameras

HEIGHT, WIDTH = 60, 80


def segment(points, a, b):
    along = np.clip(((points - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(points - a - along[:, None] * (b - a), axis=-1)


def solid_distance(item, points):
    """Distance (n,) of points (n, 3) to the surface of a solid."""
    local = points - np.array(item.center)
    turn = np.radians(item.yaw)
    x = np.cos(turn) * local[:, 0] - np.sin(turn) * local[:, 2]
    z = np.sin(turn) * local[:, 0] + np.cos(turn) * local[:, 2]
    half = np.array(item.extents)
    if item.shape == "ball":
        return np.abs(np.linalg.norm(local, axis=-1) - half[0])
    if item.shape == "box":
        over = np.abs(np.stack((x, local[:, 1], z), -1)) - half
        outside = np.linalg.norm(np.maximum(over, 0), axis=-1)
        return np.abs(outside + np.minimum(over.max(-1), 0))
    profile = np.stack((np.hypot(x, z), local[:, 1]), -1)  # cylinder, cone: turned about y
    foot, rim = np.array([0.0, -half[1]]), np.array([half[0], -half[1]])
    if item.shape == "cone":
        return np.minimum(segment(profile, foot, rim), segment(profile, rim, np.array([0.0, half[1]])))
    top = np.array([half[0], half[1]])
    sides = [segment(profile, foot, rim), segment(profile, rim, top)]
    return np.minimum.reduce([*sides, segment(profile, top, np.array([0.0, half[1]]))])


def surface_distance(scene, points):
    """Distance (n,) of points (n, 3) to the nearest surface of a scene."""
    distances = [np.abs(points[:, 1])] + [solid_distance(item, points) for item in scene.objects]
    if scene.surroundings.room is not None:
        half, behind, front, height = scene.surroundings.room
        walls = (points[:, 0] + half, half - points[:, 0], points[:, 2] + behind, front - points[:, 2])
        distances += [np.abs(wall) for wall in (*walls, height - points[:, 1])]
    return np.minimum.reduce(distances)


def world(seed, views, *, start=0, units="metric", scale=1.0, **others):
    """A View of the world's views and its scene."""
    (cameras,) = sample_cameras(seed, 1, views, split="test", start=start, lens_jitter=0.1)
    (item,) = render_views([cameras], HEIGHT, WIDTH, samples=1)
    pose = item.world_to_cam.clone()
    pose[..., 3] *= scale
    depth = (item.depth_metric * scale).masked_fill(~item.mask, torch.inf)
    cameras_of = {"intrinsics": item.intrinsics, "world_to_cam": pose, "image": item.image}
    return View.from_depth(depth, units=units, **cameras_of, **others), cameras[0]


def distances(fused, scene):
    return surface_distance(scene, fused.cloud.points.double().numpy())


@pytest.mark.parametrize("seed", range(6))
def test_a_cloud_of_exact_views_lies_on_the_surfaces(seed):
    view, scene = world(seed, 4)
    for voxel_size, limit in ((0.0, 1e-4), (0.05, 0.05)):
        fused = fuse_views(view, FusionSettings(voxel_size=voxel_size))
        far = distances(fused, scene)
        assert far.max() < limit, "not even a merged point lies off by more than its voxel"
        # a merged point of a plane or a gentle curve stays on it
        assert np.median(far) < 2e-4


@pytest.mark.parametrize("seed", range(4))
def test_the_check_keeps_what_is_true(seed):
    view, _ = world(seed, 5)
    fused = fuse_views(view, FusionSettings(edge_rtol=0.0))
    lost = fused.counts["pixels that other views see through"]
    assert lost < 0.005 * int(view.mask.sum()) and len(fused.cloud.points) == int(view.mask.sum()) - lost


def with_floaters(view, random):
    """The view with squares of 5 pixels a side at half depth, and where they are (b, h, w)."""
    depth, where = view.depth.clone(), torch.zeros_like(view.mask)
    for index in range(len(view)):
        for _ in range(12):
            row, column = (int(torch.randint(2, size - 7, (), generator=random)) for size in (HEIGHT, WIDTH))
            patch = (index, slice(row, row + 5), slice(column, column + 5))
            where[patch] = view.mask[patch]
    depth[where] = depth[where] / 2
    return replace(view, depth=depth), where


def seen_through(exact, view, where):
    """Of the floaters, in row-major order: whether another view shows something clearly behind them."""
    flags = []
    poses, lenses = view.world_to_cam.double().numpy(), view.intrinsics.double().numpy()
    behind = torch.where(exact.mask, exact.depth, torch.inf).double().numpy()
    for index in range(len(view)):
        rows, columns = np.nonzero(where[index].numpy())
        rays = np.stack((columns + 0.5, rows + 0.5, np.ones(len(rows))), -1) @ np.linalg.inv(lenses[index]).T
        points = rays * view.depth[index].double().numpy()[rows, columns, None]
        world_points = (points - poses[index, :3, 3]) @ poses[index, :3, :3]
        flag = np.zeros(len(rows), bool)
        for other in set(range(len(view))) - {index}:
            there = world_points @ poses[other, :3, :3].T + poses[other, :3, 3]
            pixel = np.floor((there @ lenses[other].T)[:, :2] / there[:, 2:]).astype(int)
            inside = (there[:, 2] > 0) & (pixel > 1).all(-1) & (pixel < np.array([WIDTH, HEIGHT]) - 2).all(-1)
            for near in np.nonzero(inside)[0]:
                x, y = pixel[near]
                area = (other, slice(y - 1, y + 2), slice(x - 1, x + 2))
                flag[near] |= behind[area].min() > 1.1 * there[near, 2] and not where[area].any()
        flags.append(flag)
    return np.concatenate(flags)


@pytest.mark.parametrize("seed", range(4))
def test_injected_floaters_are_dropped_and_little_else(seed):
    exact, scene = world(seed, 6)
    view, where = with_floaters(exact, torch.Generator().manual_seed(seed))
    checked = fuse_views(view, FusionSettings(edge_rtol=0.0))
    free = fuse_views(view, FusionSettings(edge_rtol=0.0, tolerance=0.0))
    off_before, off_after = ((distances(cloud, scene) > 0.02).sum() for cloud in (free, checked))
    known = seen_through(exact, view, where).sum()
    assert off_before > 0.9 * int(where.sum()) > 300 and known > 0.7 * off_before
    assert off_before - off_after > 0.98 * known
    true_before = len(free.cloud.points) - off_before
    true_after = len(checked.cloud.points) - off_after
    assert true_after > 0.97 * true_before


def test_min_views_keeps_what_several_views_see():
    view, _ = world(2, 4)
    sizes = [len(fuse_views(view, FusionSettings(min_views=n)).cloud.points) for n in (1, 2, 3, 4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[1] > sizes[3] > 0


def test_colors_and_normals_come_along_and_normals_are_in_the_world():
    view, scene = world(1, 3)
    normals = torch.zeros(*view.depth.shape, 3)
    normals[..., 2] = -1.0  # towards each camera
    fused = fuse_views(replace(view, normals=normals), FusionSettings(tolerance=0.0, edge_rtol=0.0))
    counts = view.mask.sum(dim=(1, 2)).tolist()
    for index, (colors, turned) in enumerate(
        zip(fused.cloud.colors.split(counts), fused.cloud.normals.split(counts), strict=True)
    ):
        assert torch.equal(colors, view.image[index][view.mask[index]])
        back = -np.linalg.inv(view.world_to_cam[index].double().numpy())[:3, 2]
        np.testing.assert_allclose(turned.numpy(), np.broadcast_to(back, turned.shape), atol=1e-5)


def test_every_nth_view_confidence_and_the_largest_size():
    confidence = torch.rand(5, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 10
    view, _ = world(3, 5, confidence=confidence)
    loose = {"tolerance": 0.0, "edge_rtol": 0.0}
    fused = fuse_views(view, FusionSettings(every=2, **loose))
    assert fused.indices == (0, 2, 4) and len(fused.cloud.points) == int(view.mask[::2].sum())
    sure = fuse_views(view, FusionSettings(min_confidence=7.0, **loose))
    assert len(sure.cloud.points) == int((view.mask & (confidence >= 7)).sum())
    surest = fuse_views(view, FusionSettings(drop_percent=75.0, **loose))
    assert len(surest.cloud.points) == pytest.approx(0.25 * int(view.mask.sum()), rel=1e-3)
    few = [fuse_views(view, FusionSettings(max_points=100, voxel_size=size, **loose)) for size in (0.0, 0.05)]
    assert all(len(cloud.cloud.points) == 100 for cloud in few)
    again = fuse_views(view, FusionSettings(max_points=100, **loose))
    other = fuse_views(view, FusionSettings(max_points=100, seed=1, **loose))
    assert torch.equal(few[0].cloud.points, again.cloud.points) and not torch.equal(
        again.cloud.points, other.cloud.points
    )


def test_voxels_hold_one_point_each():
    view, _ = world(0, 4)
    size = 0.1
    points = fuse_views(view, FusionSettings(voxel_size=size)).cloud.points.double().numpy()
    dense = fuse_views(view).cloud.points.double().numpy()
    cells = np.floor((dense - dense.min(0)) / size)
    means = {}
    for cell, point in zip(map(tuple, cells), dense, strict=True):
        means.setdefault(cell, []).append(point)
    expected = np.array([np.mean(group, axis=0) for _, group in sorted(means.items())])
    np.testing.assert_allclose(points, expected, atol=1e-5)


def test_relative_views_fuse_as_well():
    metric, _ = world(4, 4)
    relative, _ = world(4, 4, units="relative", scale=0.25)
    one, two = fuse_views(metric), fuse_views(relative)
    torch.testing.assert_close(one.cloud.points * 0.25, two.cloud.points, atol=1e-4, rtol=0)
    assert "relative units" in two.describe() and "metres" in one.describe()


@pytest.mark.parametrize("seed", range(5))
def test_every_pixel_is_accounted_for(seed):
    """Random holes, sky, confidences and settings: what is not a point is counted, once."""
    random = np.random.default_rng(seed)
    view, _ = world(
        seed, 3, confidence=torch.from_numpy(random.random((3, HEIGHT, WIDTH)).astype(np.float32))
    )
    depth = torch.where(torch.from_numpy(random.random(view.depth.shape) < 0.2), torch.nan, view.depth)
    cameras = {name: getattr(view, name) for name in ("intrinsics", "world_to_cam", "confidence", "image")}
    view = View.from_depth(depth, units="metric", **cameras)
    settings = FusionSettings(
        min_confidence=random.uniform(0, 0.3),
        drop_percent=random.uniform(0, 40),
        edge_rtol=random.choice([0.0, 0.5]),
        min_views=int(random.integers(1, 3)),
        max_points=int(random.integers(500, 20000)),
    )
    fused = fuse_views(view, settings)
    assert len(fused.cloud.points) + sum(fused.counts.values()) == view.depth.numel()
    assert bool(fused.cloud.points.isfinite().all()) and len(fused.cloud.points) <= settings.max_points


def test_one_view_needs_no_other():
    view, _ = world(0, 1)
    fused = fuse_views(view, FusionSettings(edge_rtol=0.0))
    assert len(fused.cloud.points) == int(view.mask.sum())


def apart(view):
    """The same views as of two scenes a kilometre apart: the last one stands elsewhere."""
    pose = view.world_to_cam.clone()
    pose[-1, :3, 3] += 1000
    return replace(view, world_to_cam=pose)


def test_views_that_share_nothing_are_named():
    view, _ = world(0, 3)
    fused = fuse_views(apart(view))
    assert "Views 2 share nothing with the others" in fused.describe()
    with pytest.raises(
        ValueError, match="Expected views that overlap, got 2 of which none shows a point of another"
    ):
        fuse_views(apart(view.select([0, 1])))


def test_poses_that_do_not_fit_are_said():
    """Two cameras turned by a sixth of a turn about the scene: they look at it, and contradict the first."""
    view, scene = world(0, 3, start=1)
    assert scene.surroundings.indoors
    pose, angle = view.world_to_cam.clone(), np.radians(60)
    turn = torch.eye(4)
    turn[0, 0] = turn[2, 2] = float(np.cos(angle))
    turn[0, 2], turn[2, 0] = float(np.sin(angle)), -float(np.sin(angle))
    pose[1:] = pose[1:] @ turn
    assert "do not fit together" in fuse_views(replace(view, world_to_cam=pose)).describe()


REFUSALS = {
    "no poses": (lambda view: replace(view, world_to_cam=None), {}, "Expected views with poses .* 3 without"),
    "one view without a pose": (
        lambda view: replace(view, world_to_cam=None)[0], {}, "Use Point Cloud from Depth",
    ),
    "no camera": (lambda view: replace(view, intrinsics=None), {}, "fov_degrees"),
    "no confidence": (lambda view: view, {"min_confidence": 2.0}, "Expected views with confidence, got none"),
    "nothing sure": (
        lambda view: replace(view, confidence=torch.ones_like(view.depth)),
        {"min_confidence": 2.0},
        "Expected points after the fusion, got none: .* below the confidence",
    ),
    "all edges": (lambda view: view, {"edge_rtol": 1e-9}, "got none: .* on depth edges"),
    "a huge voxel": (lambda view: view, {"voxel_size": 50.0}, "Expected voxels smaller than the scene"),
    "a tiny voxel": (lambda view: view, {"voxel_size": 1e-7}, "Expected a voxel size of at least"),
    "NaN": (lambda view: view, {"voxel_size": float("nan")}, "Expected voxel_size of 0 or more, got nan"),
    "no check": (lambda view: view, {"min_views": 2, "tolerance": 0.0}, "Expected a tolerance above 0"),
    "few views": (lambda view: view, {"min_views": 4}, "Expected at least min_views = 4 views, got 3"),
    "few of every second": (lambda view: view, {"min_views": 3, "every": 2}, "got 2. Lower min_views"),
    "no views": (lambda view: view, {"every": 0}, "Expected every of at least 1, got 0"),
    "too many dropped": (lambda view: view, {"drop_percent": 100.0}, "Expected drop_percent below 100"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_fused_is_refused_in_words(case):
    change, settings, words = REFUSALS[case]
    view, _ = world(0, 3)
    with pytest.raises(ValueError, match=words):
        fuse_views(change(view), FusionSettings(**settings))


def test_nan_poses_and_depths():
    view, _ = world(0, 2)
    depth = view.depth.clone()
    depth[0, :30] = torch.nan
    cameras = {"intrinsics": view.intrinsics, "world_to_cam": view.world_to_cam}
    half = View.from_depth(depth, units="metric", **cameras)
    assert fuse_views(half).counts["pixels invalid or sky"] >= 30 * WIDTH
    with pytest.raises(ValueError, match="not finite"):
        View.from_depth(depth, units="metric", **cameras | {"world_to_cam": view.world_to_cam * torch.nan})
