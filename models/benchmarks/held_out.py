"""The held-out scenes on which every system is evaluated: the world's test split, with a caption each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from ..world.captions import caption
from ..world.render import Frames, render
from ..world.scene import Scene, sample_scenes

HELD_OUT_SEED = 0  # of the test split; fixed, so that figures of different weights are comparable


@dataclass(frozen=True)
class HeldOut:
    """Some test scenes, rendered, with one caption each."""

    scenes: list[Scene]
    frames: Frames
    captions: list[str]


def held_out_batches(count: int, batch: int, size: int, *, seed: int = HELD_OUT_SEED) -> Iterator[HeldOut]:
    """The first `count` test scenes at `size` pixels a side.

    Choose hyperparameters on the scenes of another seed.
    """
    for start in range(0, count, batch):
        scenes, captions = hold_out(start, min(batch, count - start), seed=seed)
        yield HeldOut(scenes, render(scenes, size, size), captions)


def hold_out(start: int, count: int, *, seed: int = HELD_OUT_SEED) -> tuple[list[Scene], list[str]]:
    """`count` test scenes from index `start` on, and the caption of each."""
    scenes = sample_scenes(seed, count, split="test", start=start)
    captions = [caption(scene, random.Random(f"evaluation/{start + i}")) for i, scene in enumerate(scenes)]
    return scenes, captions
