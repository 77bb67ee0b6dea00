"""Edits: a scene, an instruction, and the edited scene; both scenes have all ground truth.

The grammar, with OBJECT = "the [COLOR] SHAPE" (the color may be left out if the shape is unique) and DISTANCE
= "half a metre" | "one metre" | "one and a half metres":

    move    ("move" | "shift" | "slide") OBJECT DISTANCE
                ("to the left" | "to the right" | "towards the camera" | "away from the camera")
            ("move" | "put" | "place") OBJECT
                ("to the left of" | "to the right of" | "in front of" | "behind") OBJECT
    rotate  ("rotate" | "turn") OBJECT DEGREES degrees ("clockwise" | "counterclockwise")
                                                                        seen from above; boxes only
    camera  ("orbit" | "move") "the camera" DEGREES "degrees" "to the" ("left" | "right")
                                                                        about the point it looks at
            ("raise" | "lower") "the camera by" DEGREES "degrees"       likewise
            "move the camera" DISTANCE ("closer" | "farther away")      along its view
            "zoom" ("in" | "out") FACTOR "times"                        field of view only

Left and right, towards and away are the viewer's, along the ground.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from .captions import RELATION_WORDS, true_relations
from .scene import (
    Scene,
    SceneCamera,
    SceneObject,
    Split,
    apparent_circle,
    camera_axes,
    is_placeable,
    sample_scenes,
    scene_from_json,
    with_objects,
)

EditKind = Literal["move", "rotate", "camera"]
EDIT_KINDS: tuple[EditKind, ...] = get_args(EditKind)
DISTANCES = {0.5: "half a metre", 1.0: "one metre", 1.5: "one and a half metres"}
DIRECTIONS = {
    "left": "to the left",
    "right": "to the right",
    "near": "towards the camera",
    "far": "away from the camera",
}
TURNS = (20, 30, 45)  # degrees; a box looks the same again after 90
ORBITS, RAISES, ZOOMS = (10, 15, 20, 30), (5, 10, 15), (1.25, 1.5)

_TRIES = 12  # proposals for one scene before another scene is sampled
_CAMERA_GAP = 0.3  # metres between camera and walls
_CAMERA_HEIGHT = 0.6
_ELEVATIONS = (4.0, 50.0)  # degrees above the target's horizon: limits of a raised or lowered camera


@dataclass(frozen=True)
class Edit:
    """`object` indexes the objects of both scenes, None for camera edits. `parameters` has the instruction's
    numbers:

    move: shift [dx, dz] in world metres, with direction and metres, or relation and reference (an object's
    index); rotate: degrees, counterclockwise from above; camera: motion, and yaw_degrees (to the right),
    pitch_degrees (up), metres (closer) or factor (larger).
    """

    source: Scene
    target: Scene
    instruction: str
    kind: EditKind
    object: int | None
    parameters: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source.to_json(), "target": self.target.to_json(), "instruction": self.instruction,
            "kind": self.kind, "object": self.object, "parameters": self.parameters,
        }  # fmt: skip


def edit_from_json(data: dict[str, Any]) -> Edit:
    """Inverse of `Edit.to_json`, also after a round trip through a JSON file."""
    scenes = {key: scene_from_json(data[key]) for key in ("source", "target")}
    return Edit(**scenes, **{key: data[key] for key in ("instruction", "kind", "object", "parameters")})


def sample_edits(
    seed: int,
    count: int,
    *,
    split: Split = "train",
    kinds: tuple[EditKind, ...] = EDIT_KINDS,
    max_objects: int = 3,
    start: int = 0,
) -> list[Edit]:
    """Edits `start` to `start + count` of a split; each is a function of (split, seed, index, kinds,
    max_objects)."""
    unknown = [kind for kind in kinds if kind not in EDIT_KINDS]
    if unknown or not kinds:
        named = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"Expected kinds of edits among {', '.join(EDIT_KINDS)}, got {named}.")
    rngs = (random.Random(f"edit/{split}/{seed}/{index}") for index in range(start, start + count))
    return [_sample_edit(rng, split, kinds, max_objects) for rng in rngs]


def _sample_edit(rng: random.Random, split: Split, kinds: tuple[EditKind, ...], max_objects: int) -> Edit:
    propose = rng.choice(_PROPOSALS[rng.choice(kinds)])  # first, so that rarely possible edits are not rare
    while True:
        (scene,) = sample_scenes(rng.getrandbits(40), 1, split=split, max_objects=max_objects)
        for _ in range(_TRIES):
            edit = propose(scene, rng)
            if edit is not None and is_sound(edit):
                return edit


def is_sound(edit: Edit) -> bool:
    """Whether the target scene is valid.

    All objects are free and within the image, a moved object or camera is inside the room, and the edited
    object is visible before and after.
    """
    scene = edit.target
    watched = range(len(scene.objects)) if edit.object is None else (edit.object,)
    if not all(is_well_seen(each, index) for each in (edit.source, scene) for index in watched):
        return False
    if edit.kind == "move" and not _stands_inside(scene, scene.objects[edit.object]):
        return False
    if edit.kind == "camera" and not _camera_stands(scene):
        return False
    return all(
        is_placeable(item, scene.objects[:i] + scene.objects[i + 1 :], scene.camera)
        for i, item in enumerate(scene.objects)
    )


def is_well_seen(scene: Scene, index: int) -> bool:
    """Whether nearer objects occlude at most a rim of the object; stricter than `is_placeable`."""
    x, y, depth, radius = apparent_circle(scene.objects[index], scene.camera)
    others = (
        apparent_circle(scene.objects[i], scene.camera) for i in range(len(scene.objects)) if i != index
    )
    return all(
        other[2] > depth or math.hypot(x - other[0], y - other[1]) > 0.9 * (radius + other[3])
        for other in others
    )


def _stands_inside(scene: Scene, item: SceneObject) -> bool:
    if scene.surroundings.room is None:
        return True
    half, behind, front, _ = scene.surroundings.room
    x, z = item.position
    return abs(x) + item.footprint <= half and item.footprint - behind <= z <= front - item.footprint


def _camera_stands(scene: Scene) -> bool:
    x, y, z = scene.camera.position
    if y < _CAMERA_HEIGHT or scene.surroundings.room is None:
        return y >= _CAMERA_HEIGHT
    half, _, front, height = scene.surroundings.room
    return abs(x) <= half - _CAMERA_GAP and z <= front - _CAMERA_GAP and y <= height - _CAMERA_GAP


def _move_along(scene: Scene, rng: random.Random) -> Edit:
    index = rng.randrange(len(scene.objects))
    direction, metres = rng.choice(list(DIRECTIONS)), rng.choice(list(DISTANCES))
    right, forward = ground_axes(scene.camera)
    along = right if direction in ("left", "right") else forward
    length = -metres if direction in ("left", "near") else metres
    shift = (length * along[0], length * along[1])
    verb, name = rng.choice(("move", "shift", "slide")), _name(scene, index, rng)
    words = f"{verb} {name} {DISTANCES[metres]} {DIRECTIONS[direction]}"
    return _moved(scene, index, shift, words, {"direction": direction, "metres": metres})


def _move_beside(scene: Scene, rng: random.Random) -> Edit | None:
    """Move to where a relation clearly holds that did not before, roughly in line with the other object."""
    if len(scene.objects) < 2:
        return None
    index, reference = rng.sample(range(len(scene.objects)), 2)
    kind = rng.choice(
        [kind for kind in RELATION_WORDS if kind not in true_relations(scene, index, reference)]
    )
    sideways = kind in ("left of", "right of")
    (rx, rz), (fx, fz) = ground_axes(scene.camera)
    main, other = (
        rng.uniform(1.0, 2.0) * (-1 if kind in ("left of", "in front of") else 1),
        rng.uniform(-1.0, 1.0),
    )
    along, across = (main, other) if sideways else (other, main)
    x, z = scene.objects[reference].position
    goal = (x + along * rx + across * fx, z + along * rz + across * fz)
    start = scene.objects[index].position
    verb, name = rng.choice(("move", "put", "place")), _name(scene, index, rng)
    words = f"{verb} {name} {RELATION_WORDS[kind]} {_name(scene, reference, rng)}"
    edit = _moved(
        scene,
        index,
        (goal[0] - start[0], goal[1] - start[1]),
        words,
        {"relation": kind, "reference": reference},
    )
    return (
        edit
        if kind in true_relations(edit.target, index, reference) and math.dist(goal, start) > 0.4
        else None
    )


def _moved(
    scene: Scene, index: int, shift: tuple[float, float], words: str, parameters: dict[str, Any]
) -> Edit:
    x, z = scene.objects[index].position
    target = _with_object(scene, index, position=(x + shift[0], z + shift[1]))
    return Edit(scene, target, words, "move", index, {"shift": list(shift), **parameters})


def _rotate(scene: Scene, rng: random.Random) -> Edit | None:
    boxes = [i for i, item in enumerate(scene.objects) if item.shape == "box"]
    if not boxes:
        return None
    index, degrees, sign = rng.choice(boxes), rng.choice(TURNS), rng.choice((-1, 1))
    verb, name = rng.choice(("rotate", "turn")), _name(scene, index, rng)
    words = f"{verb} {name} {degrees} degrees {'counterclockwise' if sign > 0 else 'clockwise'}"
    target = _with_object(scene, index, yaw=scene.objects[index].yaw + sign * degrees)
    return Edit(scene, target, words, "rotate", index, {"degrees": sign * degrees})


def _move_camera(motion: str) -> Callable[[Scene, random.Random], Edit | None]:
    def propose(scene: Scene, rng: random.Random) -> Edit | None:
        camera, words, parameters = _MOTIONS[motion](scene.camera, rng.choice((-1, 1)), rng)
        low, high = _ELEVATIONS
        if not low <= elevation(camera) <= high:
            return None
        return Edit(
            scene, replace(scene, camera=camera), words, "camera", None, {"motion": motion, **parameters}
        )

    return propose


_Motion = tuple[SceneCamera, str, dict[str, float]]


def _orbit(camera: SceneCamera, sign: int, rng: random.Random) -> _Motion:
    degrees = rng.choice(ORBITS)
    verb, side = rng.choice(("orbit", "move")), "right" if sign > 0 else "left"
    words = f"{verb} the camera {degrees} degrees to the {side}"
    return orbit_camera(camera, yaw_degrees=sign * degrees), words, {"yaw_degrees": sign * degrees}


def _raise(camera: SceneCamera, sign: int, rng: random.Random) -> _Motion:
    degrees = rng.choice(RAISES)
    words = f"{'raise' if sign > 0 else 'lower'} the camera by {degrees} degrees"
    return orbit_camera(camera, pitch_degrees=sign * degrees), words, {"pitch_degrees": sign * degrees}


def _dolly(camera: SceneCamera, sign: int, rng: random.Random) -> _Motion:
    metres = rng.choice(list(DISTANCES))
    words = f"move the camera {DISTANCES[metres]} {'closer' if sign > 0 else 'farther away'}"
    return dolly_camera(camera, sign * metres), words, {"metres": sign * metres}


def _zoom(camera: SceneCamera, sign: int, rng: random.Random) -> _Motion:
    factor = rng.choice(ZOOMS)
    words = f"zoom {'in' if sign > 0 else 'out'} {factor:g} times"
    larger = factor if sign > 0 else 1 / factor
    half = math.tan(math.radians(camera.fov) / 2) / larger
    return replace(camera, fov=2 * math.degrees(math.atan(half))), words, {"factor": larger}


_MOTIONS: dict[str, Callable[[SceneCamera, int, random.Random], _Motion]] = {
    "orbit": _orbit,
    "raise": _raise,
    "dolly": _dolly,
    "zoom": _zoom,
}
_PROPOSALS: dict[str, tuple[Callable[[Scene, random.Random], Edit | None], ...]] = {
    "move": (_move_along, _move_beside),
    "rotate": (_rotate,),
    "camera": tuple(_move_camera(motion) for motion in _MOTIONS),
}


def orbit_camera(camera: SceneCamera, *, yaw_degrees: float = 0.0, pitch_degrees: float = 0.0) -> SceneCamera:
    """Orbit the camera about its target, to the viewer's right and up, at the same distance."""
    x, y, z = (p - t for p, t in zip(camera.position, camera.target, strict=True))
    distance, azimuth = math.sqrt(x * x + y * y + z * z), math.atan2(x, z) + math.radians(yaw_degrees)
    height = math.radians(elevation(camera) + pitch_degrees)
    offset = (math.cos(height) * math.sin(azimuth), math.sin(height), math.cos(height) * math.cos(azimuth))
    return replace(
        camera, position=tuple(t + distance * o for t, o in zip(camera.target, offset, strict=True))
    )


def dolly_camera(camera: SceneCamera, metres: float) -> SceneCamera:
    """Move camera and target along the view, closer for positive `metres`."""
    forward = camera_axes(camera)[2]
    position, target = (
        tuple(p + metres * f for p, f in zip(point, forward, strict=True))
        for point in (camera.position, camera.target)
    )
    return replace(camera, position=position, target=target)


def elevation(camera: SceneCamera) -> float:
    """Degrees by which the camera looks down on its target."""
    return -math.degrees(math.asin(camera_axes(camera)[2][1]))


def ground_axes(camera: SceneCamera) -> tuple[tuple[float, float], tuple[float, float]]:
    """The viewer's right and forward along the ground, unit vectors (x, z)."""
    right = camera_axes(camera)[0]
    return (right[0], right[2]), (right[2], -right[0])


def _with_object(scene: Scene, index: int, **changes) -> Scene:
    return with_objects(
        scene, tuple(replace(item, **changes) if i == index else item for i, item in enumerate(scene.objects))
    )


def _name(scene: Scene, index: int, rng: random.Random) -> str:
    item = scene.objects[index]
    alone = sum(other.shape == item.shape for other in scene.objects) == 1
    return f"the {item.shape}" if alone and rng.random() < 0.25 else f"the {item.name}"
