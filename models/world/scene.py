"""Scenes as data: objects, surroundings, light and camera. No torch, no pixels.

World frame: right-handed, y up, the ground is y = 0, cameras look roughly along -z; lengths in metres. A
scene is a pure function of (seed, index, split).
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, replace
from typing import Literal

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

SHAPES = ("ball", "box", "cylinder", "cone")
SIZES = ("small", "large")
MATERIALS = ("matte", "shiny")
# sRGB in [0, 1]. Hues at least 25 degrees apart, and all far more saturated than any floor or wall.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.13, 0.11),
    "orange": (0.95, 0.48, 0.06),
    "yellow": (0.95, 0.84, 0.12),
    "green": (0.13, 0.62, 0.20),
    "cyan": (0.12, 0.74, 0.76),
    "blue": (0.14, 0.31, 0.88),
    "purple": (0.52, 0.19, 0.72),
    "pink": (0.96, 0.46, 0.68),
}
ROOM_FLOORS = ("wooden", "checkered", "tiled", "plain")
GROUNDS = ("grass", "sand", "paved")
WALLS = ("plain", "striped", "brick")
FAR_METRES = 24.0  # the ground has faded into haze here; beyond is sky, which has no depth

_FLOOR_PAIRS: dict[str, tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]] = {
    "wooden": (
        ((0.62, 0.45, 0.31), (0.50, 0.35, 0.23)),
        ((0.72, 0.58, 0.44), (0.62, 0.48, 0.35)),
        ((0.44, 0.34, 0.27), (0.36, 0.27, 0.21)),
    ),
    "checkered": (
        ((0.88, 0.87, 0.84), (0.30, 0.30, 0.32)),
        ((0.85, 0.80, 0.72), (0.50, 0.44, 0.40)),
        ((0.82, 0.85, 0.88), (0.42, 0.47, 0.53)),
    ),
    "tiled": (
        ((0.78, 0.76, 0.73), (0.55, 0.53, 0.51)),
        ((0.66, 0.69, 0.71), (0.46, 0.48, 0.50)),
        ((0.80, 0.72, 0.64), (0.60, 0.53, 0.46)),
    ),
    "plain": (
        ((0.70, 0.68, 0.65), (0.66, 0.64, 0.61)),
        ((0.58, 0.60, 0.63), (0.54, 0.56, 0.59)),
        ((0.76, 0.72, 0.66), (0.72, 0.68, 0.62)),
    ),
    "grass": (((0.42, 0.50, 0.28), (0.31, 0.40, 0.22)), ((0.50, 0.54, 0.32), (0.40, 0.44, 0.25))),
    "sand": (((0.83, 0.74, 0.58), (0.74, 0.64, 0.48)), ((0.86, 0.80, 0.68), (0.78, 0.71, 0.58))),
    "paved": (((0.62, 0.61, 0.60), (0.44, 0.43, 0.43)), ((0.70, 0.66, 0.62), (0.50, 0.47, 0.45))),
}
_WALL_TONES = (
    (0.82, 0.80, 0.76),
    (0.74, 0.78, 0.80),
    (0.80, 0.75, 0.68),
    (0.70, 0.72, 0.68),
    (0.86, 0.84, 0.82),
    (0.66, 0.64, 0.68),
)
_SKIES = (
    ((0.32, 0.52, 0.80), (0.78, 0.86, 0.93)),
    ((0.45, 0.58, 0.76), (0.90, 0.88, 0.84)),
    ((0.36, 0.42, 0.60), (0.92, 0.80, 0.70)),
)


@dataclass(frozen=True)
class SceneObject:
    """One solid standing on the ground.

    `extents` are half sizes along its own x, y, z in metres; `yaw` in degrees about y.
    """

    shape: str
    color: str
    size: str
    material: str
    position: tuple[float, float]
    extents: tuple[float, float, float]
    yaw: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def center(self) -> tuple[float, float, float]:
        return (self.position[0], self.extents[1], self.position[1])

    @property
    def footprint(self) -> float:
        """Radius in metres of a circle on the ground that contains the object at every yaw."""
        round_base = self.shape != "box"
        return (
            max(self.extents[0], self.extents[2])
            if round_base
            else math.hypot(self.extents[0], self.extents[2])
        )


@dataclass(frozen=True)
class SceneCamera:
    """Pinhole camera; `fov` is horizontal, in degrees, for a square image (the shorter side otherwise)."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float


@dataclass(frozen=True)
class Light:
    """`directional`: `position` is a direction towards the light. Otherwise a point in metres."""

    position: tuple[float, float, float]
    directional: bool
    color: tuple[float, float, float]
    ambient: float


@dataclass(frozen=True)
class Surroundings:
    """A room (a box seen from inside, `room` = half width, depth behind, depth in front, height) or open
    ground (`room` None)."""

    floor: str
    floor_colors: tuple[tuple[float, float, float], tuple[float, float, float]]
    floor_yaw: float
    wall: str
    wall_color: tuple[float, float, float]
    room: tuple[float, float, float, float] | None
    sky: tuple[tuple[float, float, float], tuple[float, float, float]]

    @property
    def indoors(self) -> bool:
        return self.room is not None


@dataclass(frozen=True)
class Scene:
    seed: int
    objects: tuple[SceneObject, ...]
    surroundings: Surroundings
    light: Light
    camera: SceneCamera

    def to_json(self) -> dict:
        return asdict(self)


def scene_from_json(data: dict) -> Scene:
    """Inverse of `Scene.to_json`, also after a round trip through a JSON file (lists become tuples)."""

    def freeze(value):
        return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value

    def build(kind, fields):
        return kind(**{key: freeze(value) for key, value in fields.items()})

    return Scene(
        seed=data["seed"],
        objects=tuple(build(SceneObject, item) for item in data["objects"]),
        surroundings=build(Surroundings, data["surroundings"]),
        light=build(Light, data["light"]),
        camera=build(SceneCamera, data["camera"]),
    )


def sample_scenes(
    seed: int, count: int, *, split: Split = "train", max_objects: int = 3, start: int = 0
) -> list[Scene]:
    """Scenes `start` to `start + count` of a split.

    Each depends on (split, seed, index) alone, so splits never share a scene.
    """
    if split not in SPLITS:
        raise ValueError(
            f"Expected a split of the world, {' or '.join(SPLITS)}, got {split!r}. Choose one of them."
        )
    if not 1 <= max_objects <= 6:
        raise ValueError(f"Expected max_objects from 1 to 6, got {max_objects}. Correct it.")
    return [
        _sample_scene(random.Random(f"{split}/{seed}/{index}"), max_objects)
        for index in range(start, start + count)
    ]


def _sample_scene(rng: random.Random, max_objects: int) -> Scene:
    surroundings = _sample_surroundings(rng)
    light = _sample_light(rng, surroundings)
    count = rng.choices(range(1, max_objects + 1), weights=[3, 5, 4, 2, 2, 2][:max_objects])[0]
    while True:
        camera = _sample_camera(rng, surroundings)
        objects = _place_objects(rng, camera, count)
        if objects is not None:
            return Scene(rng.getrandbits(31), objects, surroundings, light, camera)


def _sample_surroundings(rng: random.Random) -> Surroundings:
    indoors = rng.random() < 0.6
    floor = rng.choice(ROOM_FLOORS if indoors else GROUNDS)
    room = (rng.uniform(3.0, 4.6), rng.uniform(3.0, 4.6), 8.5, rng.uniform(2.8, 3.8)) if indoors else None
    return Surroundings(
        floor=floor,
        floor_colors=rng.choice(_FLOOR_PAIRS[floor]),
        floor_yaw=rng.choice((0.0, 0.0, 45.0)) if floor in ("checkered", "tiled") else 0.0,
        wall=rng.choice(WALLS),
        wall_color=rng.choice(_WALL_TONES),
        room=room,
        sky=rng.choice(_SKIES),
    )


def _sample_light(rng: random.Random, surroundings: Surroundings) -> Light:
    warm = rng.uniform(0.0, 1.0)
    color = (1.0, 0.97 - 0.07 * warm, 0.94 - 0.16 * warm)
    if surroundings.room is not None:
        position = (
            rng.choice((-1, 1)) * rng.uniform(0.8, 2.3),
            surroundings.room[3] - 0.3,
            rng.uniform(0.4, 2.6),
        )
        return Light(position, False, color, rng.uniform(0.40, 0.52))
    azimuth, elevation = math.radians(rng.uniform(0, 360)), math.radians(rng.uniform(32, 62))
    direction = (
        math.cos(elevation) * math.cos(azimuth),
        math.sin(elevation),
        math.cos(elevation) * math.sin(azimuth),
    )
    return Light(direction, True, color, rng.uniform(0.36, 0.46))


def _sample_camera(rng: random.Random, surroundings: Surroundings) -> SceneCamera:
    angle = math.radians(rng.uniform(-24, 24))
    distance = rng.uniform(4.6, 6.0)
    target = (rng.uniform(-0.3, 0.3), rng.uniform(0.25, 0.7), rng.uniform(-0.2, 0.4))
    position = (
        target[0] + distance * math.sin(angle),
        rng.uniform(1.2, 2.5),
        target[2] + distance * math.cos(angle),
    )
    if surroundings.room is not None:
        limit = surroundings.room[0] - 0.4
        position = (max(-limit, min(limit, position[0])), *position[1:])
    return SceneCamera(position, target, rng.uniform(42.0, 56.0))


def _place_objects(rng: random.Random, camera: SceneCamera, count: int) -> tuple[SceneObject, ...] | None:
    """Objects that neither touch, leave the image, nor occlude each other; None if they do not fit this
    camera."""
    names = rng.sample([(shape, color) for shape in SHAPES for color in COLORS], count)
    placed: list[SceneObject] = []
    for shape, color in names:
        for _ in range(40):
            candidate = _sample_object(rng, shape, color)
            if is_placeable(candidate, placed, camera):
                placed.append(candidate)
                break
        else:
            return None
    return tuple(placed)


def _sample_object(rng: random.Random, shape: str, color: str) -> SceneObject:
    size = rng.choice(SIZES)
    radius = rng.uniform(0.34, 0.44) if size == "small" else rng.uniform(0.66, 0.82)
    height = {
        "ball": 1.0,
        "box": rng.uniform(0.8, 1.15),
        "cylinder": rng.uniform(1.0, 1.4),
        "cone": rng.uniform(1.15, 1.5),
    }[shape]
    width = 0.86 if shape in ("box", "cylinder") else 1.0
    side = radius * width
    extents = (side, radius * height, side * (rng.uniform(0.85, 1.15) if shape == "box" else 1.0))
    material = "shiny" if rng.random() < 0.35 else "matte"
    return SceneObject(
        shape,
        color,
        size,
        material,
        (rng.uniform(-2.0, 2.0), rng.uniform(-1.9, 1.8)),
        extents,
        rng.uniform(0, 90),
    )


def is_placeable(
    candidate: SceneObject, others: list[SceneObject] | tuple[SceneObject, ...], camera: SceneCamera
) -> bool:
    """Whether the object is free, wholly in a square image, and at most a rim is occluded by or of others."""
    x, y, depth, radius = apparent_circle(candidate, camera)
    if depth < 1.5 or abs(x) + radius > 0.97 or abs(y) + radius > 1.05:
        return False
    for other in others:
        gap = math.dist(candidate.position, other.position) - candidate.footprint - other.footprint
        ox, oy, _, oradius = apparent_circle(other, camera)
        if gap < 0.12 or math.hypot(x - ox, y - oy) < 0.72 * (radius + oradius):
            return False
    return True


def apparent_circle(item: SceneObject, camera: SceneCamera) -> tuple[float, float, float, float]:
    """Projection of the object into a square image: (x, y, depth, radius of a disc around it).

    x, y and radius in units of half the image, y down; depth in metres.
    """
    right, down, forward = camera_axes(camera)
    offset = [c - p for c, p in zip(item.center, camera.position, strict=True)]
    x, y, depth = (sum(a * b for a, b in zip(axis, offset, strict=True)) for axis in (right, down, forward))
    scale = 1.0 / (max(depth, 1e-3) * math.tan(math.radians(camera.fov) / 2))
    return x * scale, y * scale, depth, max(item.footprint, item.extents[1]) * scale


def camera_axes(
    camera: SceneCamera,
) -> tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]:
    """Right, down, forward (OpenCV) of a camera that holds the world's y upright, as unit vectors in the
    world frame."""
    forward = _unit(tuple(t - p for t, p in zip(camera.target, camera.position, strict=True)))
    right = _unit((-forward[2], 0.0, forward[0]))
    down = (
        forward[1] * right[2] - forward[2] * right[1],
        forward[2] * right[0] - forward[0] * right[2],
        forward[0] * right[1] - forward[1] * right[0],
    )
    return right, down, forward


def _unit(vector: tuple[float, ...]) -> tuple[float, ...]:
    length = math.sqrt(sum(v * v for v in vector))
    return tuple(v / length for v in vector)


def with_objects(scene: Scene, objects: tuple[SceneObject, ...]) -> Scene:
    return replace(scene, objects=objects)
