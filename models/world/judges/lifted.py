"""Scenes with one solid in mid-air, which generated images may show although no scene of the world does."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields

from ..scene import Scene, SceneObject, Split, apparent_circle, sample_scenes, with_objects

LIFTS = (0.35, 1.2)  # metres


@dataclass(frozen=True)
class LiftedObject(SceneObject):
    """A solid `lift` metres above the ground."""

    lift: float = 0.0

    @property
    def center(self) -> tuple[float, float, float]:
        return (self.position[0], self.extents[1] + self.lift, self.position[1])


def lift_one(scene: Scene, rng: random.Random) -> tuple[Scene, int] | None:
    """The scene with one object lifted, and its index; None if it would leave the image or overlap
    another."""
    number = rng.randrange(len(scene.objects))
    item = scene.objects[number]
    lifted = LiftedObject(
        **{f.name: getattr(item, f.name) for f in fields(SceneObject)}, lift=rng.uniform(*LIFTS)
    )
    x, y, _, radius = apparent_circle(lifted, scene.camera)
    others = [apparent_circle(other, scene.camera) for other in scene.objects if other is not item]
    covered = any(math.hypot(x - ox, y - oy) < 0.8 * (radius + oradius) for ox, oy, _, oradius in others)
    if covered or abs(y) + radius > 1:
        return None
    return with_objects(scene, (*scene.objects[:number], lifted, *scene.objects[number + 1 :])), number


def sample_lifted(
    seed: int, count: int, *, split: Split = "train", start: int = 0
) -> list[tuple[Scene, int]]:
    """`count` scenes from index `start` of a split on, each with the index of its lifted object.

    Scenes without room to lift an object are skipped.
    """
    found: list[tuple[Scene, int]] = []
    index = start
    while len(found) < count:
        (scene,) = sample_scenes(seed, 1, split=split, start=index)
        lifted = lift_one(scene, random.Random(f"lifted/{split}/{seed}/{index}"))
        found += [lifted] if lifted else []
        index += 1
    return found
