"""Accuracy of the scorer on the test split, with true captions and captions with one fact changed."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable

from torch import Tensor

from ..captions import caption, mirror_caption, parse_caption, true_relations
from ..render import render
from ..scene import COLORS, SHAPES, Scene, sample_scenes
from .scorer import Scorer, Seen

_BATCH = 32


def scorer_accuracy(
    scorer: Scorer,
    n: int = 200,
    seed: int = 0,
    *,
    resolution: int = 128,
    change: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Fraction of facts judged correctly over `n` test scenes, each with one true and one corrupted caption.

    Keys: accuracy (all facts), true_captions, corrupted_captions, turned (only the facts that were made
    false), one per kind of fact, and of the objects found (recall), invented (false detections per scene),
    size and floor. `change` is applied to rendered images (b, h, w, 3), say, the round trip of a codec.
    """
    if n < 1:
        raise ValueError(f"Expected at least 1 scene for the scorer's evaluation, got {n}.")
    tally = _Tally()
    for start in range(0, n, _BATCH):
        scenes = sample_scenes(seed, min(_BATCH, n - start), split="test", start=start)
        image = render(scenes, resolution, resolution).image
        rngs = [random.Random(f"scorer/{seed}/{start + i}") for i in range(len(scenes))]
        captions = [caption(scene, rng) for scene, rng in zip(scenes, rngs, strict=True)]
        wrong = [
            corrupt_caption(scene, text, rng) for scene, text, rng in zip(scenes, captions, rngs, strict=True)
        ]
        image = change(image) if change else image
        for name, texts in (("true_captions", captions), ("corrupted_captions", wrong)):
            for scene, text, judgement in zip(scenes, texts, scorer.judge(image, texts), strict=True):
                tally.add_facts(name, true_facts(scene, text), judgement.facts)
                if name == "true_captions":
                    tally.add_objects(scene, judgement.seen)
    return tally.shares(n)


class _Tally:
    def __init__(self) -> None:
        self.right, self.all = Counter(), Counter()

    def add(self, key: str, right: bool) -> None:
        self.right[key] += right
        self.all[key] += 1

    def add_facts(self, name: str, truth: list[bool], facts) -> None:
        for expected, fact in zip(truth, facts, strict=True):
            for key in ("accuracy", name, fact.kind, *(() if expected else ("turned",))):
                self.add(key, fact.holds == expected)

    def add_objects(self, scene: Scene, seen: Seen) -> None:
        there = {item.name: item for item in scene.objects}
        read = {item.name: item for item in seen.objects}
        self.all["invented"] += sum(item.name not in there for item in seen.objects)
        self.add("floor", seen.floor == scene.surroundings.floor)
        for name, item in there.items():
            self.add("found", name in read)
            if name in read:
                self.add("size", read[name].size == item.size)

    def shares(self, n: int) -> dict[str, float]:
        ratios = {key: self.right[key] / count for key, count in self.all.items() if key != "invented"}
        return {**ratios, "invented": self.all["invented"] / n, "facts": self.all["accuracy"], "scenes": n}


def true_facts(scene: Scene, text: str) -> list[bool]:
    """Whether each of a caption's objects and relations holds in the scene, in the order of the scorer's
    facts."""
    description = parse_caption(text)
    named = {item.name: i for i, item in enumerate(scene.objects)}
    index = [named.get(f"{phrase.color} {phrase.shape}") for phrase in description.phrases]

    def holds(relation) -> bool:
        first, second = index[relation.first], index[relation.second]
        return (
            first is not None and second is not None and relation.kind in true_relations(scene, first, second)
        )

    return [i is not None for i in index] + [holds(relation) for relation in description.relations]


def corrupt_caption(scene: Scene, text: str, rng: random.Random) -> str:
    """The caption with one color, one shape or its relation exchanged, so that it is false."""
    ways = ["color", "shape"] + (["relation"] * 2 if parse_caption(text).relations else [])
    way = rng.choice(ways)
    if way == "relation":
        return turn_relation(text)
    names = {item.name for item in scene.objects}
    phrase = rng.choice(parse_caption(text).phrases)
    options = COLORS if way == "color" else SHAPES
    swaps = [(o, phrase.shape) if way == "color" else (phrase.color, o) for o in options]
    color, shape = rng.choice([(c, s) for c, s in swaps if f"{c} {s}" not in names])
    return _fix_articles(text.replace(f"{phrase.color} {phrase.shape}", f"{color} {shape}"))


def turn_relation(text: str) -> str:
    """Exchange left and right, or front and back."""
    for before, after in (
        ("from front to back", "from back to front"),
        ("in front of", "behind"),
        ("behind", "in front of"),
    ):
        if before in text:
            return text.replace(before, after)
    return mirror_caption(text)


def _fix_articles(text: str) -> str:
    return re.sub(r"\ban?(?= ([a-z]))", lambda match: "an" if match[1] in "aeiou" else "a", text)
