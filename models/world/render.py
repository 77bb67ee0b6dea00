"""Ray caster: scenes to images with exact geometry. Batched torch, any resolution, any device.

Letters: b scenes, k objects (padded), n rays of an image. Rays go through pixel centers (+0.5). Depth is
z-depth in metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from einops import rearrange
from torch import Tensor

from . import shading, solids
from .scene import FAR_METRES, Scene, camera_axes

_CHUNK_RAYS = 1 << 18  # keeps a chunk's intermediates near the last-level cache
# Offset of the light for each sub-sample: four hard shadows add up to a soft one.
_LIGHT_OFFSETS = ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))
_LIGHT_RADIUS = 0.16


@dataclass(frozen=True)
class Frames:
    """A batch of images with their exact geometry.

    image (b, h, w, 3): in [0, 1], sRGB
    depth (b, h, w): float32, metres, inf in the sky
    normals (b, h, w, 3): unit vectors in the camera frame (OpenCV: x right, y down, z forward), 0 in the sky
    segmentation (b, h, w): int64, 0 surroundings, i + 1 the scene's object i, -1 sky
    line (b, h, w): in {0, 1}, 1 on outlines and creases
    intrinsics (b, 3, 3): in pixels
    world_to_cam (b, 4, 4)
    """

    image: Tensor
    depth: Tensor
    normals: Tensor
    segmentation: Tensor
    line: Tensor
    intrinsics: Tensor
    world_to_cam: Tensor

    def __len__(self) -> int:
        return self.image.shape[0]


def render(
    scenes: list[Scene], height: int, width: int, *, samples: int = 2, device: str | torch.device = "cpu"
) -> Frames:
    """Render scenes: `samples` squared rays per pixel for the image, one through the center for the
    geometry."""
    if not scenes:
        raise ValueError("Expected at least one scene to render, got none. Give a scene.")
    if min(height, width) < 8 or samples < 1:
        raise ValueError(
            f"Expected an image of at least 8 x 8 pixels with at least 1 sample, got {width} x {height} "
            f"with {samples}. Raise them."
        )
    chunk = max(1, _CHUNK_RAYS // (height * width * samples * samples))
    parts = [
        _render_chunk(scenes[i : i + chunk], height, width, samples, device)
        for i in range(0, len(scenes), chunk)
    ]
    return Frames(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Frames)))


def render_geometry(
    scenes: list[Scene], height: int, width: int, *, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """depth (b, h, w) and segmentation (b, h, w) as `render` gives them, without the time of an image."""
    world = solids.pack(scenes, device)
    pose, intrinsics = _cameras(scenes, height, width, device)
    rays = _rays(pose, intrinsics, height, width, 0.5, 0.5)
    depth, _, segmentation = _geometry(solids.trace(world, *rays), rays, pose, height, width)
    return depth, segmentation


def _render_chunk(scenes: list[Scene], height: int, width: int, samples: int, device) -> Frames:
    world = solids.pack(scenes, device)
    pose, intrinsics = _cameras(scenes, height, width, device)
    rays = _rays(pose, intrinsics, height, width, 0.5, 0.5)
    hit = solids.trace(world, *rays)
    depth, normals, segmentation = _geometry(hit, rays, pose, height, width)
    image = sum(
        _shade_sample(world, pose, intrinsics, (height, width), (samples, i), scenes)
        for i in range(samples * samples)
    ) / (samples * samples)
    line = draw_lines(depth, normals, segmentation)
    return Frames(shading.encode_srgb(image), depth, normals, segmentation, line, intrinsics, pose)


def _cameras(scenes: list[Scene], height: int, width: int, device) -> tuple[Tensor, Tensor]:
    """world_to_cam (b, 4, 4) and intrinsics (b, 3, 3). The field of view belongs to the shorter side."""
    pose = torch.eye(4, dtype=torch.float64).repeat(len(scenes), 1, 1)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(len(scenes), 1, 1)
    for i, scene in enumerate(scenes):
        rotation = torch.tensor(camera_axes(scene.camera), dtype=torch.float64)
        pose[i, :3, :3] = rotation
        pose[i, :3, 3] = -rotation @ torch.tensor(scene.camera.position, dtype=torch.float64)
        focal = min(height, width) / (2 * math.tan(math.radians(scene.camera.fov) / 2))
        intrinsics[i, 0, 0] = intrinsics[i, 1, 1] = focal
        intrinsics[i, 0, 2], intrinsics[i, 1, 2] = width / 2, height / 2
    return pose.float().to(device), intrinsics.float().to(device)


def _rays(
    pose: Tensor, intrinsics: Tensor, height: int, width: int, dx: float, dy: float
) -> tuple[Tensor, Tensor]:
    """Origins (b, 3, 1) and directions (b, 3, n) in the world frame.

    Directions have z-depth 1, so the length of a ray is depth.
    """
    device = pose.device
    x = (torch.arange(width, device=device) + dx - intrinsics[:, 0, 2:]) / intrinsics[:, 0, 0:1]
    y = (torch.arange(height, device=device) + dy - intrinsics[:, 1, 2:]) / intrinsics[:, 1, 1:2]
    x, y = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
    in_cam = rearrange(torch.stack((x, y, torch.ones_like(x)), 1), "b xyz h w -> b xyz (h w)")
    to_world = rearrange(pose[:, :3, :3], "b cam world -> b world cam")
    return -to_world @ pose[:, :3, 3:], to_world @ in_cam


def _geometry(
    hit: solids.Hit, rays: tuple[Tensor, Tensor], pose: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """depth (b, h, w), normals (b, h, w, 3) and segmentation (b, h, w) of the rays through the pixel
    centers."""
    sky = hit.distance >= FAR_METRES
    depth = hit.distance.masked_fill(sky, math.inf)
    normals = (pose[:, :3, :3] @ hit.normal).masked_fill(sky[:, None], 0.0)
    segmentation = (hit.object + 1).masked_fill(sky, -1)
    size = {"h": height, "w": width}
    return (
        rearrange(depth, "b (h w) -> b h w", **size),
        rearrange(normals, "b xyz (h w) -> b h w xyz", **size),
        rearrange(segmentation, "b (h w) -> b h w", **size),
    )


def _shade_sample(world: solids.World, pose, intrinsics, size, sample, scenes: list[Scene]) -> Tensor:
    """One sub-sample of the image (b, h, w, 3) in linear light."""
    samples, index = sample
    dx, dy = ((index % samples) + 0.5) / samples, ((index // samples) + 0.5) / samples
    origins, directions = _rays(pose, intrinsics, *size, dx, dy)
    hit = solids.trace(world, origins, directions)
    offset = _LIGHT_OFFSETS[index % 4] if samples > 1 else (0.0, 0.0)
    color = shading.shade(
        world,
        hit,
        origins,
        directions,
        tuple(_LIGHT_RADIUS * o for o in offset),
        pixel=1.0 / intrinsics[:, 0, 0],
    )
    return rearrange(color, "b rgb (h w) -> b h w rgb", h=size[0], w=size[1])


def draw_lines(
    depth: Tensor, normals: Tensor, segmentation: Tensor, *, crease_degrees: float = 35.0, step: float = 0.04
) -> Tensor:
    """Lines (b, h, w) in {0, 1}: outlines of objects and sky, creases, and depth steps.

    At a crease normals turn by more than `crease_degrees`. At a depth step the second difference of inverse
    depth is above `step` times inverse depth, which is linear on a plane, so slanted floors have no lines.
    """
    inverse = 1.0 / depth
    line = torch.zeros_like(depth, dtype=torch.bool)
    for axis in (1, 2):
        length = depth.shape[axis]
        here, there = (
            (lambda t, a=axis, n=length: t.narrow(a, 0, n - 1)),
            (lambda t, a=axis, n=length: t.narrow(a, 1, n - 1)),
        )
        border = here(segmentation) != there(segmentation)
        solid = (here(segmentation) >= 0) & (there(segmentation) >= 0)
        crease = solid & ((here(normals) * there(normals)).sum(-1) < math.cos(math.radians(crease_degrees)))
        line.narrow(axis, 0, length - 1).logical_or_(border | crease)
        bend = (
            inverse.narrow(axis, 2, length - 2)
            - 2 * inverse.narrow(axis, 1, length - 2)
            + inverse.narrow(axis, 0, length - 2)
        ).abs()
        line.narrow(axis, 1, length - 2).logical_or_(
            bend > step * inverse.narrow(axis, 1, length - 2).clamp_min(1e-6)
        )
    return line.float()
