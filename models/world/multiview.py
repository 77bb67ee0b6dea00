"""Several cameras around one scene: overlapping images with exact depth, poses and intrinsics.

The scenes are those of `sample_scenes`, which fixes the first camera; the further ones are a pure function of
(seed, index, split) as well. World frame as in scene.py: right-handed, y up, metres.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .render import Frames, render
from .scene import Scene, SceneCamera, Split, camera_axes, sample_scenes

VIEW_COUNTS = (1, 8)  # fewest and most views of a scene
_TURN_DEGREES = 34.0  # of each further camera around the scene, from the first one
_DISTANCE = (0.8, 1.2)  # of the first camera's, for the further ones
_HEIGHT = (0.7, 2.5)  # metres above the ground
_CLEARANCE = 0.9  # metres between a camera and the circle around an object
_WALL = 0.4  # metres between a camera and a wall
_TRIES = 60  # after which a camera takes its turn half as wide
_IN_FRONT = 1.2  # metres from a camera to the scene's middle at least


@dataclass(frozen=True)
class MultiView:
    """The views of one scene with their exact geometry.

    image (v, h, w, 3): in [0, 1], sRGB
    depth_metric (v, h, w): float32, z-depth in metres, 0 where `mask` is False
    mask (v, h, w): bool, False in the sky
    world_to_cam (v, 3, 4): OpenCV cameras in the scene's y-up world; `relative_poses` gives the first
        camera's frame
    intrinsics (v, 3, 3): in pixels, pixel centers at +0.5
    segmentation (v, h, w): int64, as in `Frames`; objects have the same label in all views
    """

    image: Tensor
    depth_metric: Tensor
    mask: Tensor
    world_to_cam: Tensor
    intrinsics: Tensor
    segmentation: Tensor

    def __len__(self) -> int:
        return self.image.shape[0]


def sample_cameras(
    seed: int,
    count: int,
    views: int,
    *,
    split: Split = "train",
    start: int = 0,
    max_objects: int = 3,
    lens_jitter: float = 0.0,
) -> list[tuple[Scene, ...]]:
    """Scenes `start` to `start + count` of a split, each as `views` scenes that differ in the camera alone.

    The first camera is that of `sample_scenes`. The fields of view of the further ones differ from it by up
    to `lens_jitter` of it, at random; 0 is one lens for all. More views of a scene begin with fewer views'
    cameras.
    """
    low, high = VIEW_COUNTS
    if not low <= views <= high:
        raise ValueError(f"Expected {low} to {high} views of a scene, got {views}.")
    if not 0 <= lens_jitter < 0.5:
        raise ValueError(f"Expected a lens_jitter from 0 to below 0.5, got {lens_jitter:g}.")
    scenes = sample_scenes(seed, count, split=split, max_objects=max_objects, start=start)
    result = []
    for index, scene in enumerate(scenes, start):
        rng = random.Random(f"{split}/{seed}/{index}/cameras")
        others = [_sample_camera(rng, scene, lens_jitter) for _ in range(views - 1)]
        result.append((scene, *(replace(scene, camera=camera) for camera in others)))
    return result


def render_views(
    scenes: Sequence[Sequence[Scene]], height: int, width: int, *, samples: int = 2, device="cpu"
) -> list[MultiView]:
    """Render what `sample_cameras` gave; numbers of views may differ between scenes."""
    flat = [scene for views in scenes for scene in views]
    frames = render(flat, height, width, samples=samples, device=device)
    result, start = [], 0
    for views in scenes:
        result.append(_multiview(frames, slice(start, start + len(views))))
        start += len(views)
    return result


def sample_views(
    seed: int,
    count: int,
    views: int,
    size: tuple[int, int],
    *,
    split: Split = "train",
    start: int = 0,
    lens_jitter: float = 0.0,
    samples: int = 2,
) -> list[MultiView]:
    """`sample_cameras`, rendered at `size` (height, width)."""
    scenes = sample_cameras(seed, count, views, split=split, start=start, lens_jitter=lens_jitter)
    return render_views(scenes, *size, samples=samples)


def relative_poses(world_to_cam: Tensor) -> Tensor:
    """Poses (..., v, 3, 4) restated with the first camera's frame as the world: the first is [I | 0]."""
    rotation, shift = world_to_cam[..., :3], world_to_cam[..., 3:]
    turned = rotation @ rotation[..., :1, :, :].transpose(-1, -2)
    return torch.cat((turned, shift - turned @ shift[..., :1, :, :]), dim=-1)


def _multiview(frames: Frames, which: slice) -> MultiView:
    depth = frames.depth[which]
    mask = depth.isfinite()
    return MultiView(
        image=frames.image[which],
        depth_metric=depth.masked_fill(~mask, 0.0),
        mask=mask,
        world_to_cam=frames.world_to_cam[which, :3],
        intrinsics=frames.intrinsics[which],
        segmentation=frames.segmentation[which],
    )


def _sample_camera(rng: random.Random, scene: Scene, lens_jitter: float) -> SceneCamera:
    """A camera that stands free, inside a room, and shows the middle of what the first one shows."""
    turn, tries = _TURN_DEGREES, 0
    while True:
        camera = _turned_camera(rng, scene.camera, turn, lens_jitter)
        if _stands_free(camera, scene) and _sees(camera, scene.camera.target):
            return camera
        tries += 1
        turn = turn / 2 if tries % _TRIES == 0 else turn


def _turned_camera(
    rng: random.Random, first: SceneCamera, turn_degrees: float, lens_jitter: float
) -> SceneCamera:
    x, _, z = (p - t for p, t in zip(first.position, first.target, strict=True))
    angle = math.atan2(x, z) + math.radians(rng.uniform(-turn_degrees, turn_degrees))
    distance = math.hypot(x, z) * rng.uniform(*_DISTANCE)
    target = tuple(t + rng.uniform(-0.35, 0.35) for t in first.target)
    height = rng.uniform(*_HEIGHT)
    position = (
        first.target[0] + distance * math.sin(angle),
        height,
        first.target[2] + distance * math.cos(angle),
    )
    return SceneCamera(position, target, first.fov * (1 + rng.uniform(-lens_jitter, lens_jitter)))


def _stands_free(camera: SceneCamera, scene: Scene) -> bool:
    x, _, z = camera.position
    if scene.surroundings.room is not None:
        half, behind, front, _ = scene.surroundings.room
        if abs(x) > half - _WALL or not _WALL - behind < z < front - _WALL:
            return False
    return all(math.dist((x, z), item.position) > item.footprint + _CLEARANCE for item in scene.objects)


def _sees(camera: SceneCamera, point: tuple[float, float, float]) -> bool:
    """Whether the point lies in the inner half of a square image."""
    offset = [p - c for p, c in zip(point, camera.position, strict=True)]
    x, y, depth = (sum(a * b for a, b in zip(axis, offset, strict=True)) for axis in camera_axes(camera))
    reach = 0.5 * depth * math.tan(math.radians(camera.fov) / 2)
    return depth > _IN_FRONT and abs(x) < reach and abs(y) < reach
