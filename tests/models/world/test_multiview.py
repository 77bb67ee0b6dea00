"""Views of one scene: reprojected into each other by NumPy in float64, depth, label and color agree where
nothing is in between."""

import math

import numpy as np
import pytest
import torch

from spatialweave.models.world.multiview import (
    relative_poses,
    render_views,
    sample_cameras,
    sample_views,
)
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes

SIZE = (96, 120)


def reproject(item, i, j):
    """Pixels of view i in view j: position (n, 2), z-depth (n,), and the pixels (n, 2) row, column in i."""
    depth, mask = item.depth_metric[i].double().numpy(), item.mask[i].numpy()
    (first, second), (lens, other) = (
        [tensor[k].double().numpy() for k in (i, j)] for tensor in (item.world_to_cam, item.intrinsics)
    )
    rows, columns = np.nonzero(mask)
    pixels = np.stack((columns + 0.5, rows + 0.5, np.ones(len(rows))), -1)
    in_cam = (pixels @ np.linalg.inv(lens).T) * depth[rows, columns, None]
    world = (in_cam - first[:, 3]) @ first[:, :3]  # R^T (p - t)
    there = world @ second[:, :3].T + second[:, 3]
    projected = there @ other.T
    return projected[:, :2] / projected[:, 2:], there[:, 2], np.stack((rows, columns), -1)


def sample_four(map_, x, y):
    """Bilinear values and the four neighbors' range at pixel positions; centers at +0.5."""
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    corners = np.stack([map_[top + a, left + b] for a in (0, 1) for b in (0, 1)])
    wx, wy = x - left, y - top
    weights = np.stack(((1 - wx) * (1 - wy), wx * (1 - wy), (1 - wx) * wy, wx * wy))
    weights = weights.reshape(weights.shape + (1,) * (corners.ndim - 2))
    return (weights * corners).sum(0), corners


def common(item, i, j):
    """What view i shows inside view j, with view j's depth there, away from j's edges: a dict of arrays."""
    place, depth, pixels = reproject(item, i, j)
    height, width = item.mask.shape[1:]
    inside = (depth > 0.2) & (place > 1).all(-1) & (place < np.array([width, height]) - 1).all(-1)
    place, depth, pixels = place[inside], depth[inside], pixels[inside]
    inverse, corners = sample_four(1 / item.depth_metric[j].double().clamp_min(1e-9).numpy(), *place.T)
    _, labels = sample_four(item.segmentation[j].numpy(), *place.T)
    smooth = (labels == labels[0]).all(0) & (corners.max(0) / corners.min(0) < 1.15)
    names = {"place": place, "depth": depth, "pixels": pixels, "there": 1 / inverse, "label": labels[0]}
    names["nearest"] = 1 / corners.max(0)
    return {name: value[smooth] for name, value in names.items()}, inside.mean()


@pytest.mark.parametrize("seed", range(6))
def test_depth_of_one_view_is_the_depth_of_another(seed):
    (item,) = sample_views(seed, 1, 3, SIZE, split="test", samples=1, lens_jitter=0.15)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        seen, _ = common(item, i, j)
        error = (seen["depth"] - seen["there"]) / seen["there"]
        visible = np.abs(error) < 0.01
        in_front = (seen["depth"] < 0.99 * seen["nearest"]).mean()
        assert in_front < 1e-3, "nothing lies before the surface that the other view sees"
        assert visible.mean() > 0.75 and np.median(np.abs(error[visible])) < 2e-4
        own = item.segmentation[i].numpy()[tuple(seen["pixels"][visible].T)]
        assert (own == seen["label"][visible]).mean() > 0.995


@pytest.mark.parametrize("seed", range(4))
def test_colors_agree_where_both_see_the_surface(seed):
    (item,) = sample_views(seed, 1, 2, SIZE, samples=2)
    seen, _ = common(item, 0, 1)
    visible = np.abs(seen["depth"] / seen["there"] - 1) < 0.01
    here = item.image[0].double().numpy()[tuple(seen["pixels"][visible].T)]
    there, corners = sample_four(item.image[1].double().numpy(), *seen["place"][visible].T)
    calm = (corners.max(0) - corners.min(0)).max(-1) < 0.08  # away from texture that either view blurs
    difference = np.abs(here - there).max(-1)[calm]
    assert calm.mean() > 0.5 and np.median(difference) < 0.01 and np.quantile(difference, 0.95) < 0.06
    shifted, _ = sample_four(item.image[0].double().numpy(), *seen["place"][visible].T)
    assert np.abs(here - shifted).max(-1).mean() > 2 * np.abs(here - there).max(-1).mean()


def test_views_of_a_scene_overlap_and_differ():
    """Each further view shows a good part of the first one's pixels, from somewhere else."""
    shares, turns = [], []
    for item in sample_views(11, 12, 4, (48, 48), split="test", samples=1):
        for j in range(1, 4):
            place, depth, _ = reproject(item, 0, j)
            inside = (depth > 0) & (place > 0).all(-1) & (place < 48).all(-1)
            shares.append(inside.mean())
            rotation = item.world_to_cam[0, :, :3] @ item.world_to_cam[j, :, :3].T
            turns.append(math.degrees(math.acos(min(1, (float(rotation.trace()) - 1) / 2))))
    assert min(shares) > 0.3 and np.median(shares) > 0.65
    assert np.median(turns) > 8 and max(turns) < 60


def test_the_first_view_is_the_scene_itself():
    scene = sample_scenes(3, 1, split="test", start=5)
    frames = render(scene, 40, 56)
    (item,) = sample_views(3, 1, 3, (40, 56), split="test", start=5)
    # on some processors a batch of another size rounds a unit in the last place otherwise
    assert (item.image[0] - frames.image[0]).abs().max() <= torch.finfo(torch.float32).eps
    assert torch.equal(item.world_to_cam[0], frames.world_to_cam[0, :3])
    assert torch.equal(item.depth_metric[0][item.mask[0]], frames.depth[0][frames.depth[0].isfinite()])
    assert bool((item.depth_metric[~item.mask] == 0).all())
    shapes = (item.image.shape, item.mask.shape, item.world_to_cam.shape, item.intrinsics.shape)
    assert shapes == ((3, 40, 56, 3), (3, 40, 56), (3, 3, 4), (3, 3, 3))


def test_same_seed_same_views_and_splits_are_apart():
    one, two = sample_cameras(7, 3, 5), sample_cameras(7, 3, 5)
    assert one == two == sample_cameras(7, 5, 5)[:3]
    assert sample_cameras(7, 1, 5, start=2)[0] == one[2] and sample_cameras(7, 3, 8)[1][:5] == one[1]
    train, test = (
        {view.camera for scene in sample_cameras(0, 200, 4, split=split) for view in scene}
        for split in ("train", "test")
    )
    assert len(train) == len(test) == 800 and not train & test


def test_cameras_stand_in_the_room_and_clear_of_every_object():
    for views in sample_cameras(1, 300, 8, max_objects=6):
        for scene in views[1:]:
            x, y, z = scene.camera.position
            gaps = [math.dist((x, z), item.position) - item.footprint for item in scene.objects]
            assert min(gaps) > 0.5 and 0.5 < y < 2.7
            if scene.surroundings.room is not None:
                half, behind, front, height = scene.surroundings.room
                assert abs(x) < half and -behind < z < front and y < height


def test_relative_poses_keep_what_the_cameras_see_of_each_other():
    (item,) = sample_views(2, 1, 4, (24, 24), samples=1)
    poses = relative_poses(item.world_to_cam).double().numpy()
    np.testing.assert_allclose(poses[0], np.eye(4)[:3], atol=1e-6)
    absolute = item.world_to_cam.double().numpy()
    for i in range(4):
        square = [np.vstack((pose, (0, 0, 0, 1))) for pose in (absolute[i], absolute[0], poses[i])]
        np.testing.assert_allclose(square[0] @ np.linalg.inv(square[1]), square[2], atol=1e-5)


def test_lenses_are_one_or_each_its_own():
    (same,) = sample_views(0, 1, 4, (24, 24), samples=1)
    assert bool((same.intrinsics == same.intrinsics[0]).all())
    (own,) = sample_views(0, 1, 4, (24, 24), samples=1, lens_jitter=0.3)
    focal = own.intrinsics[:, 0, 0]
    assert len(set(focal.tolist())) == 4 and torch.equal(own.intrinsics[0], same.intrinsics[0])
    lens = 12 / torch.tan(
        torch.deg2rad(torch.tensor([s.camera.fov for s in sample_cameras(0, 1, 4, lens_jitter=0.3)[0]])) / 2
    )
    torch.testing.assert_close(focal, lens)


def test_scenes_of_different_view_counts_render_together():
    cameras = sample_cameras(0, 2, 4)
    together = render_views([cameras[0][:2], cameras[1]], 24, 32, samples=1)
    assert [len(item) for item in together] == [2, 4]
    (alone,) = render_views([cameras[1]], 24, 32, samples=1)
    assert torch.equal(together[1].image, alone.image)


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="Expected 1 to 8 views of a scene, got 9"):
        sample_cameras(0, 1, 9)
    with pytest.raises(ValueError, match="Expected a lens_jitter from 0 to below 0.5, got 0.7"):
        sample_cameras(0, 1, 2, lens_jitter=0.7)
