"""The loss on scenes of the world, whose geometry is exact: targets agree across views,
and one batch can be learnt.
"""

from dataclasses import replace

import pytest
import torch

from spatialweave.models.core.geometry.camera import pad_pose, project, transform_points
from spatialweave.models.vggt.network import Vggt
from spatialweave.models.vggt.training import (
    LossSettings,
    TrainedVggt,
    augment,
    crop_middle,
    init_weights,
    loss,
    match_patches,
    matching_error,
    mirror_poses,
    normalize_scene,
)
from spatialweave.models.world.multiview import sample_views

PLAIN = LossSettings(views=(3,), mirror=0.0, color=0.0)


@pytest.fixture(scope="module")
def batch():
    scenes = sample_views(3, 4, 3, (56, 56), samples=1)
    return {
        "image": torch.stack([(scene.image * 255).round().to(torch.uint8) for scene in scenes]),
        "depth": torch.stack([scene.depth_metric for scene in scenes]),
        "world_to_cam": torch.stack([scene.world_to_cam for scene in scenes]),
        "intrinsics": torch.stack([scene.intrinsics for scene in scenes]),
    }


def seen_depth(points, depth, pose, intrinsics):
    """Relative gap between points' own depth in a camera and that camera's map there, in the middle quantile.
    """
    pixels, z = project(transform_points(points.reshape(-1, 3), pad_pose(pose)), intrinsics)
    x, y = pixels.floor().long().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < depth.shape[1]) & (y >= 0) & (y < depth.shape[0])
    found = depth[y[inside], x[inside]]
    gap = ((found - z[inside]).abs() / z[inside])[found > 0]
    return float(gap.median()), int(inside.sum())


def test_targets_are_one_scene_in_the_first_cameras_frame(batch):
    """Points of view 3 lie, by the target poses, on the surfaces that views 1 and 2 show,
    and have a mean distance of 1.
    """
    truth = normalize_scene(batch["depth"], batch["world_to_cam"], batch["intrinsics"])
    known = truth["depth"] > 0
    assert torch.allclose(truth["world_to_cam"][:, 0], torch.eye(4)[:3].expand(4, 3, 4), atol=1e-6)
    for i in range(4):
        assert abs(float(truth["points"][i][known[i]].norm(dim=-1).mean()) - 1) < 1e-4
        for view in (0, 1):
            points = truth["points"][i, 2][known[i, 2]]
            gap, count = seen_depth(
                points, truth["depth"][i, view], truth["world_to_cam"][i, view], batch["intrinsics"][i, view]
            )
            assert count > 500 and gap < 0.03


def test_mirrored_scenes_are_scenes(batch):
    """Mirrored images with mirrored poses fit together as the plain ones do."""
    depth, poses = batch["depth"].flip(-1), mirror_poses(batch["world_to_cam"])
    truth = normalize_scene(depth, poses, batch["intrinsics"])
    assert (torch.linalg.det(poses[..., :3]) - 1).abs().max() < 1e-5
    for i in range(4):
        points = truth["points"][i, 1][truth["depth"][i, 1] > 0]
        gap, count = seen_depth(
            points, truth["depth"][i, 0], truth["world_to_cam"][i, 0], batch["intrinsics"][i, 0]
        )
        assert count > 500 and gap < 0.03


def test_a_crop_keeps_each_pixels_ray(batch):
    image = batch["image"].movedim(-1, 2).float()
    cut, depth, lens = crop_middle(image, batch["depth"], batch["intrinsics"], (28, 42))
    assert cut.shape[-2:] == depth.shape[-2:] == (28, 42) and torch.equal(cut, image[..., 14:42, 7:49])
    ray = lambda matrix, x, y: torch.linalg.inv(matrix) @ torch.tensor([x, y, 1.0])  # noqa: E731
    assert torch.allclose(ray(lens[0, 0], 3.5, 4.5), ray(batch["intrinsics"][0, 0], 10.5, 18.5), atol=1e-5)


def test_augmentation_is_a_function_of_the_generator(batch):
    settings = LossSettings(sides=(42, 56))
    one, two, other = (augment(batch, torch.Generator().manual_seed(seed), settings) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["image"].shape != other["image"].shape or not torch.equal(one["image"], other["image"])
    assert float(one["image"].min()) >= 0 and float(one["image"].max()) <= 1


def test_one_batch_can_be_learnt(batch, small):
    config = replace(small.config, heads=("camera", "depth"), pixel_center=0.5)
    network = Vggt(config)
    init_weights(network, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = TrainedVggt(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    # one order of the views throughout: the generator starts anew at each step
    history = []
    for _ in range(60):
        total, logs = loss(model, batch, torch.Generator().manual_seed(0), PLAIN)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: float(value) for name, value in logs.items()})
    assert history[-1]["log_error"] < 0.4 * history[0]["log_error"]
    assert history[-1]["pose_error"] < 0.4 * history[0]["pose_error"]
    assert history[-1]["points"] < 0.4 * history[0]["points"]


def test_depth_of_some_views_alone_trains_too(batch, small):
    config = replace(small.config, heads=("camera", "depth"))
    network = Vggt(config)
    init_weights(network, torch.Generator().manual_seed(0))
    model = TrainedVggt(network)
    total, logs = loss(model, batch, torch.Generator().manual_seed(0), replace(PLAIN, depth_views=1))
    total.backward()
    assert all(value.isfinite() for value in logs.values())
    idle = [name for name, value in model.named_parameters() if value.grad is None]
    assert idle == ["network.aggregator.patch_embed.mask_token"], "DINOv2's own training alone uses it"


def test_matched_patches_show_the_same_surface(batch):
    """Of two equal cameras each patch matches itself; of others the matched patch holds the point's pixel."""
    twice = {name: value[:, [0, 0, 2]] for name, value in batch.items()}
    truth = normalize_scene(twice["depth"], twice["world_to_cam"], twice["intrinsics"])
    target = match_patches(truth, twice["intrinsics"], 14)
    assert target.shape == (4, 3, 16, 3) and (target[:, [0, 1, 2], :, [0, 1, 2]] == -1).all()
    known = (truth["depth"][:, 0, 7::14, 7::14] > 0).flatten(1)
    expected = torch.where(known, torch.arange(16), -1)
    assert torch.equal(target[:, 0, :, 1], expected) and torch.equal(target[:, 1, :, 0], expected)
    found = 0
    for i, n in (target[:, 0, :, 2] >= 0).nonzero().tolist():
        row, column = divmod(n, 4)
        point = truth["points"][i, 0, 7 + 14 * row, 7 + 14 * column]
        pixel, depth = project(
            transform_points(point, pad_pose(truth["world_to_cam"][i, 2])), twice["intrinsics"][i, 2]
        )
        x, y = pixel.long().tolist()
        assert int(target[i, 0, n, 2]) == y // 14 * 4 + x // 14
        assert abs(float(truth["depth"][i, 2, y, x] - depth)) < 0.031 * float(depth)
        found += 1
    assert found > 10


def test_attention_that_matches_has_a_small_error_and_another_a_large_one(batch):
    truth = normalize_scene(batch["depth"], batch["world_to_cam"], batch["intrinsics"])
    target = match_patches(truth, batch["intrinsics"], 14)
    right = torch.nn.functional.one_hot(target.clamp(min=0), 16).float() * 30
    first = right.clone()
    first[:, :, :, 1:] = 0  # the first view's match alone, among all patches
    assert matching_error([right, first], truth, batch["intrinsics"], 14) < 1e-4
    assert matching_error([right.flip(-1), first], truth, batch["intrinsics"], 14) > 5
    assert matching_error([right, right.flip(3)], truth, batch["intrinsics"], 14) > 5
