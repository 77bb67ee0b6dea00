"""Moves of one object to a definite position: edits whose target is a function of scene and instruction.

The grammar, with OBJECT and DISTANCE as in `edits`, one metre where DISTANCE is left out:

    ("move" | "shift" | "slide") OBJECT [DISTANCE]
        ("to the left" | "to the right" | "towards the camera" | "away from the camera")
    ("move" | "put" | "place") OBJECT
        ("to the left of" | "to the right of" | "in front of" | "behind" | "next to") OBJECT
    ("move" | "put" | "place") OBJECT "between" OBJECT "and" OBJECT

Beside, in front of and behind leave SIDE_GAP or DEPTH_GAP metres of ground between the footprints, along the
viewer's axes; next to is the side on which the object already is; between is the middle of both objects. An
object may be partly occluded before or after the move, unlike in `edits`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .captions import RELATION_WORDS
from .edits import DIRECTIONS, DISTANCES, Edit, ground_axes
from .scene import Scene, SceneObject, Split, apparent_circle, sample_scenes, with_objects

Stratum = Literal["one", "layers", "occlusion"]
STRATA: tuple[Stratum, ...] = get_args(Stratum)

SIDE_GAP, DEPTH_GAP = 0.3, 0.5  # metres between footprints
FREE_GAP = 0.12  # metres: the least between any two footprints
LEAST_MOVE = 0.4  # metres
LEAST_VISIBLE = 0.35  # of an object's disc, before and after
WHOLLY_VISIBLE = 0.92  # and above: not occluded
LAYER_GAP = 0.55  # metres of depth between two objects that are in different depth layers

EDITS = 6  # of one scene and object, from
POSITIONS = 4  # of the object, of which each is rendered once
_TRIES = 40  # proposals for one scene before another scene is sampled
_POINTS = 64  # samples of a disc


@dataclass(frozen=True)
class MoveGoal:
    """A position of the moved object, and the way to say it; `metres` from the scene's first position."""

    position: tuple[float, float]
    direction: str = ""
    metres: float = 0.0
    relation: str = ""
    references: tuple[int, ...] = ()


def sample_moves(
    seed: int, count: int, *, split: Split = "train", max_objects: int = 3, start: int = 0,
    stratum: Stratum | None = None,
) -> list[Edit]:  # fmt: skip
    """Moves `start` to `start + count` of a split, each a function of (split, seed, index, max_objects,
    stratum).

    Without `stratum` all three occur; "parameters" names each edit's.
    """
    if stratum is not None and stratum not in STRATA:
        raise ValueError(
            f"Expected a stratum of moves, {', '.join(STRATA)}, got {stratum!r}. Choose one of them."
        )
    if max_objects < 2 and stratum != "one":
        raise ValueError(
            f"Expected max_objects of at least 2 for moves in depth layers, got {max_objects}. Raise it."
        )
    kinds = (stratum,) if stratum else STRATA
    moves: list[Edit] = []
    for group in range(start // EDITS, -(-(start + count) // EDITS)):
        rng = random.Random(f"move/{split}/{seed}/{group}/{stratum or 'all'}")
        moves += _sample_group(rng, split, rng.choice(kinds), max_objects)
    first = start - start // EDITS * EDITS
    return moves[first : first + count]


def find_stratum(edit: Edit) -> Stratum | None:
    """Which stratum an edit is in; None for several objects in one depth layer, none of them occluded."""
    if len(edit.source.objects) == 1:
        return "one"
    if min(visible_share(scene, i) for scene in (edit.source, edit.target) for i in _indices(scene)) < (
        WHOLLY_VISIBLE
    ):
        return "occlusion"
    depths = [apparent_circle(item, edit.target.camera)[2] for item in edit.target.objects]
    moved = depths.pop(edit.object)
    return "layers" if max(abs(depth - moved) for depth in depths) > LAYER_GAP else None


def visible_share(scene: Scene, index: int) -> float:
    """How much of an object's apparent disc no nearer object's disc covers."""
    x, y, depth, radius = apparent_circle(scene.objects[index], scene.camera)
    nearer = [
        circle
        for i, item in enumerate(scene.objects)
        if i != index and (circle := apparent_circle(item, scene.camera))[2] < depth
    ]
    seen = 0
    for k in range(_POINTS):
        # a sunflower's points cover the disc evenly
        far, angle = radius * math.sqrt((k + 0.5) / _POINTS), k * math.pi * (3 - math.sqrt(5))
        px, py = x + far * math.cos(angle), y + far * math.sin(angle)
        seen += all(math.hypot(px - cx, py - cy) > 0.9 * r for cx, cy, _, r in nearer)
    return seen / _POINTS


def _sample_group(rng: random.Random, split: Split, stratum: Stratum, max_objects: int) -> list[Edit]:
    """EDITS moves of one object of one scene, between POSITIONS positions."""
    while True:
        (scene,) = sample_scenes(
            rng.getrandbits(40), 1, split=split, max_objects=1 if stratum == "one" else max_objects
        )
        if (len(scene.objects) == 1) != (stratum == "one"):
            continue
        index = rng.randrange(len(scene.objects))
        goals = _sample_goals(scene, index, rng)
        edits = [edit for edit in _connect(scene, index, goals, rng) if find_stratum(edit) == stratum]
        if len(edits) >= EDITS:
            kept = rng.sample(edits, EDITS)
            return [replace(e, parameters={**e.parameters, "stratum": stratum}) for e in kept]


def _sample_goals(scene: Scene, index: int, rng: random.Random) -> list[MoveGoal]:
    goals: list[MoveGoal] = []
    for _ in range(_TRIES):
        goal = _propose(scene, index, rng)
        known = [scene.objects[index].position, *(each.position for each in goals)]
        if min(math.dist(goal.position, each) for each in known) > LEAST_MOVE and _fits(scene, index, goal):
            goals.append(goal)
        if len(goals) == POSITIONS - 1:
            break
    return goals


def _propose(scene: Scene, index: int, rng: random.Random) -> MoveGoal:
    others = [i for i in _indices(scene) if i != index]
    x, z = scene.objects[index].position
    if not others or rng.random() < 0.25:
        direction, metres = rng.choice(list(DIRECTIONS)), rng.choice(list(DISTANCES))
        dx, dz = shift_along(scene, direction, metres)
        return MoveGoal((x + dx, z + dz), direction=direction, metres=metres)
    if len(others) > 1 and rng.random() < 0.3:
        first, second = rng.sample(others, 2)
        (ax, az), (bx, bz) = (scene.objects[i].position for i in (first, second))
        middle = ((ax + bx) / 2, (az + bz) / 2)
        return MoveGoal(middle, relation="between", references=(first, second))
    relation, reference = rng.choice(list(RELATION_WORDS)), rng.choice(others)
    position = position_beside(scene, index, relation, reference)
    return MoveGoal(position, relation=relation, references=(reference,))


def shift_along(scene: Scene, direction: str, metres: float) -> tuple[float, float]:
    """The shift (dx, dz) in world metres of a move in one of DIRECTIONS."""
    right, forward = ground_axes(scene.camera)
    along = right if direction in ("left", "right") else forward
    length = -metres if direction in ("left", "near") else metres
    return length * along[0], length * along[1]


def position_beside(scene: Scene, index: int, relation: str, reference: int) -> tuple[float, float]:
    """Where the object `index` goes to stand in `relation`, one of RELATION_WORDS, to `reference`."""
    right, forward = ground_axes(scene.camera)
    item, other = scene.objects[index], scene.objects[reference]
    sideways = relation in ("left of", "right of")
    axis, gap = (right, SIDE_GAP) if sideways else (forward, DEPTH_GAP)
    length = item.footprint + other.footprint + gap
    length = -length if relation in ("left of", "in front of") else length
    return other.position[0] + length * axis[0], other.position[1] + length * axis[1]


def _fits(scene: Scene, index: int, goal: MoveGoal) -> bool:
    """Whether the object can stand there: free, in the room and the image, all objects mostly visible."""
    moved = move_object(scene, index, goal.position)
    item = moved.objects[index]
    x, y, depth, radius = apparent_circle(item, scene.camera)
    if depth < 1.5 or abs(x) + radius > 0.97 or abs(y) + radius > 1.05 or not _in_room(moved, item):
        return False
    others = [other for i, other in enumerate(moved.objects) if i != index]
    gaps = [math.dist(item.position, o.position) - item.footprint - o.footprint for o in others]
    if gaps and min(gaps) < FREE_GAP:
        return False
    return all(visible_share(moved, i) >= LEAST_VISIBLE for i in _indices(moved))


def _in_room(scene: Scene, item: SceneObject) -> bool:
    if scene.surroundings.room is None:
        return True
    half, behind, front, _ = scene.surroundings.room
    x, z = item.position
    return abs(x) + item.footprint <= half and item.footprint - behind <= z <= front - item.footprint


def _connect(scene: Scene, index: int, goals: list[MoveGoal], rng: random.Random) -> Iterator[Edit]:
    """The edits between the scene and its goals that can be said.

    A relation leads from every other position, a direction from the scene's own and back to it.
    """
    moved = [move_object(scene, index, goal.position) for goal in goals]
    for k, (goal, target) in enumerate(zip(goals, moved, strict=True)):
        yield _say(scene, target, index, goal, rng)
        if goal.direction:
            back = {"left": "right", "right": "left", "near": "far", "far": "near"}[goal.direction]
            yield _say(target, scene, index, replace(goal, direction=back), rng)
            continue
        for source in moved[:k] + moved[k + 1 :]:
            yield _say(source, target, index, goal, rng)


def _say(source: Scene, target: Scene, index: int, goal: MoveGoal, rng: random.Random) -> Edit:
    """The edit from one scene to the other, which is at the goal."""
    name = _name(source, index, rng)
    (x, z), (tx, tz) = source.objects[index].position, target.objects[index].position
    parameters = {"shift": [tx - x, tz - z]}
    if goal.direction:
        verb = rng.choice(("move", "shift", "slide"))
        words = DISTANCES[goal.metres] + " " if goal.metres != 1.0 or rng.random() < 0.5 else ""
        instruction = f"{verb} {name} {words}{DIRECTIONS[goal.direction]}"
        parameters |= {"direction": goal.direction, "metres": goal.metres}
        return Edit(source, target, instruction, "move", index, parameters)
    verb, others = rng.choice(("move", "put", "place")), [_name(source, i, rng) for i in goal.references]
    if goal.relation == "between":
        parameters |= {"relation": "between", "references": list(goal.references)}
        return Edit(
            source, target, f"{verb} {name} between {' and '.join(others)}", "move", index, parameters
        )
    words = RELATION_WORDS[goal.relation]
    if _is_on_side(source, index, goal) and rng.random() < 0.3:
        words = "next to"
    parameters |= {"relation": goal.relation, "reference": goal.references[0]}
    return Edit(source, target, f"{verb} {name} {words} {others[0]}", "move", index, parameters)


def _is_on_side(scene: Scene, index: int, goal: MoveGoal) -> bool:
    """Whether the object is already on the side of the reference that a goal beside it names."""
    if goal.relation not in ("left of", "right of"):
        return False
    right, _ = ground_axes(scene.camera)
    (x, z), (rx, rz) = scene.objects[index].position, scene.objects[goal.references[0]].position
    along = (x - rx) * right[0] + (z - rz) * right[1]
    return along < 0 if goal.relation == "left of" else along > 0


def move_object(scene: Scene, index: int, position: tuple[float, float]) -> Scene:
    """The scene with one object at another position (x, z) in world metres."""
    objects = list(scene.objects)
    objects[index] = replace(objects[index], position=position)
    return with_objects(scene, tuple(objects))


def _indices(scene: Scene) -> range:
    return range(len(scene.objects))


def _name(scene: Scene, index: int, rng: random.Random) -> str:
    item = scene.objects[index]
    alone = sum(other.shape == item.shape for other in scene.objects) == 1
    return f"the {item.shape}" if alone and rng.random() < 0.2 else f"the {item.name}"
