"""The training loss of a VGGT network on scenes with ground-truth geometry, and its weight initialization.

Letters: b scenes, v views; `h w` pixels. The common frame is the first view's camera frame; lengths are in
units of the scene's mean distance from that camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from ..core.geometry.camera import invert_pose, pad_pose, pixel_centers
from ..core.layers.attention import attend, attend_with_scores
from ..core.layers.positions import apply_grid_rotary, grid_rotary_table
from ..core.losses import masked_mean, sum_terms
from .config import VggtConfig
from .network import Encoded, Prediction, Vggt
from .pose_code import encode_poses, relative_to_first

INIT_STD = 0.02
SAME_SURFACE = 0.03  # relative depth difference up to which two views see the same surface
LAYER_SCALE = 0.3  # initial value for a network of few blocks; the released 24 blocks began at .01


@dataclass(frozen=True)
class LossSettings:
    """The `loss` part of a recipe."""

    camera: float = 2.0  # weight of the camera term
    depth: float = 1.0
    gradient: float = 0.5  # weight of differences between neighboring pixels, beside the depth term
    confidence: float = 0.3  # weight of log(confidence): larger values raise the confidence
    points: float = 2.0  # weight of the probes: the patches' points in the first camera's frame
    matching: float = 0.5  # weight of the attention between views, which learns the patch of the same surface
    depth_views: int = 0  # views of a scene whose depth counts in a step; 0 is all
    iteration: float = 0.6  # weight of a camera iteration relative to the one after it
    views: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 4)  # numbers of views, of which each step draws one
    sides: tuple[int, ...] = ()  # pixels; each step crops both sides to one of these; () keeps the size
    mirror: float = 0.5  # share of steps whose scenes are mirrored
    color: float = 0.15  # largest relative change of brightness, contrast and each color channel


class TrainedVggt(nn.Module):
    """A network with what training alone needs: linear probes, and logits of the attention between views.

    A probe maps a kept entry's patch tokens to the patches' points in the first camera's frame.
    """

    def __init__(self, network: Vggt, *, operations=torch.nn):
        super().__init__()
        self.network = network
        self.probes = nn.ModuleDict(
            {str(i): operations.Linear(network.config.layer_dim, 3) for i in network.config.dpt_layers[1:]}
        )

    def forward(self, images: Tensor, dense: list[int]) -> Observed:
        """Outputs of the heads (depth for the views `dense` alone) and probes, and the matching logits."""
        config, collected = self.network.config, []
        kernel = attend_with_scores if images.device.type == "cpu" else attend
        blocks = self.network.aggregator.global_blocks[1:3]
        hooks = [
            norm.register_forward_hook(lambda module, given, found: collected.append(found))
            for block in blocks
            for norm in (block.attn.q_norm, block.attn.k_norm)
        ]
        try:
            kept = (*config.dpt_layers, config.depth - 1)
            encoded = self.network.aggregator(images, kept, attend=kernel)
        finally:
            for hook in hooks:
                hook.remove()
        size = images.shape[-2:]
        cameras = self.network.predict(encoded, size, heads=("camera",), attend=kernel)
        shown = Encoded({i: layer[:, dense] for i, layer in encoded.layers.items()}, encoded.patch_start)
        maps = self.network.predict(shown, size, heads=("depth",), views_at_once=0)
        patches = {i: layer[:, :, encoded.patch_start :] for i, layer in encoded.layers.items()}
        points = [probe(patches[int(i)]).float() for i, probe in self.probes.items()]
        pairs = zip(collected[::2], collected[1::2])
        logits = [matching_logits(q, k, images.shape[1], size=size, config=config) for q, k in pairs]
        return Observed(maps._replace(poses=cameras.poses), points, logits)


class Observed(NamedTuple):
    """What the loss compares with the ground truth."""

    prediction: Prediction
    points: list[Tensor]  # (b, v, n, 3), of each probe
    logits: list[Tensor]  # (b, v, n, v, n), of each block whose attention has the matching loss


def matching_logits(q: Tensor, k: Tensor, views: int, *, size: tuple[int, int], config: VggtConfig) -> Tensor:
    """Attention logits of the first head between the patches of all views, (b, v, n, v, n).

    q, k (b, h, v n, d) after their norm, before the rotation.
    """
    rows, columns = (side // config.patch_size for side in size)
    table = grid_rotary_table(rows, columns, q.shape[-1], config.rope_freq, device=q.device)
    parts = []
    for x in (q, k):
        x = rearrange(x[:, :1], "b one (v n) d -> (b v) one n d", v=views)[:, :, config.special_tokens :]
        parts.append(rearrange(apply_grid_rotary(x, table), "(b v) one n d -> b v n (one d)", v=views))
    return torch.einsum("b v n d, b w m d -> b v n w m", *parts) * q.shape[-1] ** -0.5


def init_weights(network: Vggt, generator: Generator) -> None:
    """Normal initialization with a small standard deviation; norms at 1, layer scales at LAYER_SCALE."""
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if name.endswith("gamma"):
                parameter.fill_(LAYER_SCALE)
            elif parameter.ndim == 4 and "aggregator" not in name:
                fan_in = parameter[0].numel()
                parameter.normal_(0, fan_in**-0.5, generator=generator)
            elif parameter.ndim >= 2:
                parameter.normal_(0, INIT_STD, generator=generator)
            elif name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.zero_()


def loss(
    model: TrainedVggt, batch: Mapping[str, Tensor], generator: Generator, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Camera, depth, probe and matching terms of scenes, of which some views are used in random order.

    image (b, v, h, w, 3) uint8; depth (b, v, h, w) in metres, 0 where unknown; world_to_cam (b, v, 3, 4);
    intrinsics (b, v, 3, 3) in pixels.
    """
    batch = augment(batch, generator, settings)
    truth = normalize_scene(batch["depth"], batch["world_to_cam"], batch["intrinsics"])
    size = batch["depth"].shape[-2:]
    views, patch = batch["depth"].shape[1], model.network.config.patch_size
    dense = torch.randperm(views, generator=generator)[: settings.depth_views or views].tolist()
    prediction, points, logits = model(batch["image"], dense)

    poses = encode_poses(truth["world_to_cam"], batch["intrinsics"], size)
    last, camera = len(prediction.poses) - 1, 0.0
    for i, predicted in enumerate(prediction.poses):
        camera = camera + settings.iteration ** (last - i) * F.l1_loss(predicted.float(), poses)

    known = truth["depth"][:, dense] > 0
    log_depth = truth["depth"][:, dense].clamp(min=1e-6).log()
    error = prediction.depth.float().clamp(1e-6, 1e6).log() - log_depth
    confidence = prediction.depth_confidence.float()
    depth = masked_mean(confidence * error.abs() - settings.confidence * confidence.log(), known)
    terms = {
        "camera": settings.camera * camera,
        "depth": settings.depth * depth,
        "points": settings.points * point_error(points, truth, patch),
        "matching": settings.matching * matching_error(logits, truth, batch["intrinsics"], patch),
        "gradient": settings.gradient * gradient_error(error, known),
    }
    total, logs = sum_terms(terms)
    with torch.no_grad():
        logs["log_error"] = masked_mean(error.abs(), known)
        logs["pose_error"] = F.l1_loss(prediction.poses[-1].float(), poses)
    return total, logs


def point_error(predicted: list[Tensor], truth: Mapping[str, Tensor], patch: int) -> Tensor:
    """L1 error of the probes' points (b, v, n, 3) at the patches' centers, relative to each point's distance
    from the first camera.
    """
    middle = slice(patch // 2, None, patch)
    points = rearrange(truth["points"][:, :, middle, middle], "b v h w xyz -> b v (h w) xyz")
    known = rearrange(truth["depth"][:, :, middle, middle], "b v h w -> b v (h w)") > 0
    distance = points.norm(dim=-1).clamp(min=0.1)
    errors = [masked_mean((probed - points).abs().sum(-1) / distance, known) for probed in predicted]
    return torch.stack(errors).mean()


def matching_error(
    logits: list[Tensor], truth: Mapping[str, Tensor], intrinsics: Tensor, patch: int
) -> Tensor:
    """Cross entropy of attention logits (b, v, n, w, m), patch m of view w for the surface in patch n of v.

    The first block is trained to find the patch within each other view; the second to find the first view's
    among the patches of all views, its own included, since the first view's frame is the common one.
    """
    target = match_patches(truth, intrinsics, patch)
    within, first = (found.float() for found in logits)
    terms = (
        (rearrange(within, "b v n w m -> (b v n w) m"), target.flatten()),
        (rearrange(first[:, 1:], "b v n w m -> (b v n) (w m)"), target[:, 1:, :, 0].flatten()),
    )
    errors = [
        F.cross_entropy(found, matches, ignore_index=-1)
        for found, matches in terms
        if bool((matches >= 0).any())
    ]
    return torch.stack(errors).mean() if errors else intrinsics.new_zeros(())


def match_patches(truth: Mapping[str, Tensor], intrinsics: Tensor, patch: int) -> Tensor:
    """For the point in the middle of each patch of each view, the patch of each other view that shows it.

    (b, v, n, w), -1 where it is hidden, outside, unknown, or in its own view.
    """
    middle = slice(patch // 2, None, patch)
    depth = truth["depth"]
    height, width = depth.shape[-2:]
    points = rearrange(truth["points"][:, :, middle, middle], "b v h w xyz -> b v (h w) xyz")
    known = rearrange(depth[:, :, middle, middle], "b v h w -> b v (h w)") > 0
    pose = truth["world_to_cam"]
    in_cam = torch.einsum("b w i j, b v n j -> b v n w i", pose[..., :3], points)
    in_cam = in_cam + pose[:, None, None, :, :, 3]
    pixels = torch.einsum("b w i j, b v n w j -> b v n w i", intrinsics, in_cam)
    z = in_cam[..., 2]
    x, y = (pixels[..., i] / z.clamp(min=1e-6) for i in (0, 1))
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height) & known[..., None]
    column, row = x.clamp(0, width - 1).long(), y.clamp(0, height - 1).long()
    flat = rearrange(depth, "b w h x -> b w (h x)")
    pixel = rearrange(row * width + column, "b v n w -> b w (v n)")
    found = rearrange(flat.gather(2, pixel), "b w (v n) -> b v n w", v=depth.shape[1])
    seen = inside & ((found - z).abs() < SAME_SURFACE * z)
    own = torch.eye(depth.shape[1], dtype=torch.bool, device=depth.device)[:, None]
    index = (row // patch) * (width // patch) + column // patch
    return torch.where(seen & ~own, index, -1)


def gradient_error(error: Tensor, known: Tensor) -> Tensor:
    """Mean absolute difference of the error between neighboring known pixels, at distances of 1, 2 and 4."""
    terms = []
    for step in (1, 2, 4):
        for axis in (-1, -2):
            length = error.shape[axis] - step
            here, there = error.narrow(axis, 0, length), error.narrow(axis, step, length)
            both = known.narrow(axis, 0, length) & known.narrow(axis, step, length)
            terms.append(masked_mean((there - here).abs(), both))
    return torch.stack(terms).mean()


def normalize_scene(depth: Tensor, world_to_cam: Tensor, intrinsics: Tensor) -> dict[str, Tensor]:
    """Depth, poses (b, v, 3, 4) and points (b, v, h, w, 3) in the first camera's frame, in units of the mean
    distance of the scene's known points from that camera.
    """
    poses = relative_to_first(world_to_cam)
    height, width = depth.shape[-2:]
    rays = pixel_centers(height, width, device=depth.device)
    rays = torch.cat((rays, torch.ones_like(rays[..., :1])), dim=-1)
    in_cam = torch.einsum("b v i j, h w j -> b v h w i", torch.linalg.inv(intrinsics), rays)
    in_cam = in_cam * depth[..., None]
    to_first = invert_pose(pad_pose(poses))
    points = torch.einsum("b v i j, b v h w j -> b v h w i", to_first[..., :3, :3], in_cam)
    points = points + to_first[..., :3, 3][:, :, None, None]
    known = depth > 0
    distances = torch.where(known, points.norm(dim=-1), 0.0)
    count = known.sum(dim=(1, 2, 3)).clamp(min=1)
    unit = (distances.sum(dim=(1, 2, 3)) / count).clamp(min=1e-6)
    shift = poses[..., 3:] / rearrange(unit, "b -> b 1 1 1")
    scaled = depth / rearrange(unit, "b -> b 1 1 1")
    return {
        "depth": scaled,
        "world_to_cam": torch.cat((poses[..., :3], shift), dim=-1),
        "points": points / rearrange(unit, "b -> b 1 1 1 1"),
    }


def augment(
    batch: Mapping[str, Tensor], generator: Generator, settings: LossSettings
) -> dict[str, Tensor]:
    """Some of the views in random order, cropped around the middle, mirrored, recolored.

    The image becomes (b, v, 3, h, w) in [0, 1].
    """
    views = batch["image"].shape[1]
    count = min(views, settings.views[_draw(len(settings.views), generator)])
    order = torch.randperm(views, generator=generator)[:count]
    picked = {name: value[:, order.to(value.device)] for name, value in batch.items()}
    image = rearrange(picked["image"].float() / 255, "b v h w c -> b v c h w")
    depth, poses, intrinsics = picked["depth"].float(), picked["world_to_cam"], picked["intrinsics"]
    if settings.sides:
        height, width = (settings.sides[_draw(len(settings.sides), generator)] for _ in range(2))
        image, depth, intrinsics = crop_middle(image, depth, intrinsics, (height, width))
    if float(torch.rand((), generator=generator)) < settings.mirror:
        image, depth, poses = image.flip(-1), depth.flip(-1), mirror_poses(poses)
    return {
        "image": recolor(image, generator, settings.color),
        "depth": depth,
        "world_to_cam": poses,
        "intrinsics": intrinsics,
    }


def _draw(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def crop_middle(
    image: Tensor, depth: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The middle (h, w) of images and maps; the principal point moves along. Larger sizes keep the side."""
    height, width = depth.shape[-2:]
    rows, columns = min(size[0], height), min(size[1], width)
    top, left = (height - rows) // 2, (width - columns) // 2
    moved = intrinsics.clone()
    moved[..., 0, 2] -= left
    moved[..., 1, 2] -= top
    cut = (..., slice(top, top + rows), slice(left, left + columns))
    return image[cut], depth[cut], moved


def mirror_poses(world_to_cam: Tensor) -> Tensor:
    """Poses of mirrored images of the mirrored world, x -> -x in the world and in every camera."""
    flip = world_to_cam.new_tensor([-1.0, 1.0, 1.0])
    return world_to_cam * flip[:, None] * torch.cat((flip, flip.new_ones(1)))


def recolor(image: Tensor, generator: Generator, amount: float) -> Tensor:
    """Images (b, v, 3, h, w) with one change of brightness, contrast and channels for a scene's views."""
    draws = 1 + amount * (2 * torch.rand(len(image), 5, generator=generator) - 1)
    gain, contrast, channels = draws.to(image.device).split((1, 1, 3), dim=1)
    changed = image * rearrange(gain * channels, "b c -> b 1 c 1 1")
    return ((changed - 0.5) * rearrange(contrast, "b one -> b one 1 1 1") + 0.5).clamp(0, 1)
