"""Captions of scenes: written from a scene, and parsed into the facts that they state.

Left, right, in front of and behind are the viewer's. One grammar writes the captions that models train on and
reads the prompts that the scorer checks.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from .scene import COLORS, SHAPES, SIZES, Scene, SceneObject, apparent_circle

RelationKind = Literal["left of", "right of", "in front of", "behind"]
OPPOSITE: dict[str, RelationKind] = {
    "left of": "right of",
    "right of": "left of",
    "in front of": "behind",
    "behind": "in front of",
}
RELATION_WORDS: dict[str, str] = {
    "left of": "to the left of",
    "right of": "to the right of",
    "in front of": "in front of",
    "behind": "behind",
}
_PLACES = {
    "wooden": "on a wooden floor",
    "checkered": "on a checkered floor",
    "tiled": "on a tiled floor",
    "plain": "in a room",
    "grass": "on grass",
    "sand": "on sand",
    "paved": "on paving stones",
}
_SYNONYMS = {
    "sphere": "ball",
    "spheres": "ball",
    "balls": "ball",
    "cube": "box",
    "cubes": "box",
    "block": "box",
    "boxes": "box",
    "cylinders": "cylinder",
    "cones": "cone",
    "teal": "cyan",
    "turquoise": "cyan",
    "violet": "purple",
    "big": "large",
    "tiny": "small",
    "little": "small",
    "an": "a",
    "floors": "floor",
    "tiles": "tiled",
    "wood": "wooden",
    "checkerboard": "checkered",
}
_CHAINS = {
    "from left to right": "left of",
    "from right to left": "right of",
    "from front to back": "in front of",
    "from back to front": "behind",
}
_SIDE_MARGIN = 0.16  # of half the image: the least distance at which captions state left and right
_DEPTH_MARGIN = 0.55  # metres: the least distance at which captions state in front and behind

# Every word that a caption may have; the tiny text encoder knows these (a test holds that both agree).
WORDS: frozenset[str] = frozenset(
    [*SHAPES, *COLORS, *SIZES, "a", "shiny"]
    + " ".join(["and next to", *RELATION_WORDS.values(), *_CHAINS, *_PLACES.values()]).split()
)


@dataclass(frozen=True)
class Phrase:
    """One object as a caption names it; None for what the caption does not state."""

    shape: str
    color: str | None = None
    size: str | None = None
    shiny: bool = False

    def words(self) -> str:
        named = " ".join(filter(None, (self.size, "shiny" if self.shiny else None, self.color, self.shape)))
        return f"{'an' if named[0] in 'aeiou' else 'a'} {named}"


@dataclass(frozen=True)
class Relation:
    """`first` is `kind` (say, left of) `second`; both index the description's phrases."""

    kind: RelationKind
    first: int
    second: int


@dataclass(frozen=True)
class Description:
    """The facts that a prompt states; `place` is the scene's floor."""

    phrases: tuple[Phrase, ...]
    relations: tuple[Relation, ...]
    place: str | None = None


def caption(scene: Scene, rng: random.Random) -> str:
    """A sentence that names every object, states one true relation between them, and sometimes the place."""
    order = list(range(len(scene.objects)))
    rng.shuffle(order)
    place = _PLACES[scene.surroundings.floor] if rng.random() < 0.5 else None
    sizes = rng.random() < 0.5
    phrases = [_phrase(scene.objects[i], rng, sizes).words() for i in order]
    if len(order) == 1:
        text = phrases[0]
    elif len(order) == 2:
        text = _two(scene, order, phrases, rng)
    else:
        text = _many(scene, order, phrases, rng)
    return f"{text} {place}" if place else text


def _phrase(item: SceneObject, rng: random.Random, sizes: bool) -> Phrase:
    shiny = item.material == "shiny" and rng.random() < 0.7
    return Phrase(item.shape, item.color, item.size if sizes else None, shiny)


def _two(scene: Scene, order: list[int], phrases: list[str], rng: random.Random) -> str:
    kinds = true_relations(scene, order[0], order[1])
    if not kinds or rng.random() < 0.12:
        return (
            f"{phrases[0]} and {phrases[1]}" if rng.random() < 0.5 else f"{phrases[0]} next to {phrases[1]}"
        )
    return f"{phrases[0]} {RELATION_WORDS[rng.choice(kinds)]} {phrases[1]}"


def _many(scene: Scene, order: list[int], phrases: list[str], rng: random.Random) -> str:
    ways = [("left of", "from left to right"), ("in front of", "from front to back")]
    rng.shuffle(ways)
    for kind, words in ways:
        chain = sorted(order, key=lambda i: _sort_key(scene, i, kind))
        if (
            all(kind in true_relations(scene, a, b) for a, b in zip(chain, chain[1:], strict=False))
            and rng.random() < 0.75
        ):
            text = {i: phrase for i, phrase in zip(order, phrases, strict=True)}
            return f"{_list([text[i] for i in chain])} {words}"
    kinds = true_relations(scene, order[0], order[1])
    if kinds:
        pair = f"{phrases[0]} {RELATION_WORDS[rng.choice(kinds)]} {phrases[1]}"
        return " and ".join([pair, *phrases[2:]])
    return _list(phrases)


def _list(phrases: list[str]) -> str:
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _sort_key(scene: Scene, index: int, kind: str) -> float:
    x, _, depth, _ = apparent_circle(scene.objects[index], scene.camera)
    return x if kind == "left of" else depth


def true_relations(scene: Scene, first: int, second: int) -> list[RelationKind]:
    """The relations that clearly hold between two objects of a scene, seen from its camera."""
    ax, _, az, _ = apparent_circle(scene.objects[first], scene.camera)
    bx, _, bz, _ = apparent_circle(scene.objects[second], scene.camera)
    kinds: list[RelationKind] = []
    if abs(ax - bx) > _SIDE_MARGIN:
        kinds.append("left of" if ax < bx else "right of")
    if abs(az - bz) > _DEPTH_MARGIN:
        kinds.append("in front of" if az < bz else "behind")
    return kinds


def mirror_caption(text: str) -> str:
    """The caption of the mirrored scene: left and right exchanged."""
    return re.sub(r"\b(left|right)\b", lambda match: "right" if match[0] == "left" else "left", text)


def split_words(text: str) -> list[str]:
    """Lower-case words with synonyms resolved, without punctuation."""
    return [_SYNONYMS.get(word, word) for word in re.findall(r"[a-z0-9]+", text.lower())]


def parse_caption(text: str) -> Description:
    """The facts that a prompt states.

    Words outside the grammar are ignored; without a shape it states nothing.
    """
    words = split_words(text)
    phrases: list[Phrase] = []
    gaps: list[list[str]] = [[]]
    pending: dict = {}
    for word in words:
        if word in COLORS:
            pending["color"] = word
        elif word in ("small", "large"):
            pending["size"] = word
        elif word == "shiny":
            pending["shiny"] = True
        elif word in SHAPES:
            phrases.append(Phrase(word, **pending))
            pending = {}
            gaps.append([])
        else:
            gaps[-1].append(word)
    return Description(tuple(phrases), tuple(_relations(phrases, gaps)), _place(words))


def _relations(phrases: list[Phrase], gaps: list[list[str]]) -> list[Relation]:
    tail = " ".join(gaps[-1]) if phrases else ""
    for words, kind in _CHAINS.items():
        if words in tail:
            return [Relation(kind, i, i + 1) for i in range(len(phrases) - 1)]
    found = []
    for i, gap in enumerate(gaps[1:-1]):
        for kind, words in RELATION_WORDS.items():
            if words.replace("to the ", "") in " ".join(gap):
                found.append(Relation(kind, i, i + 1))
    return found


def _place(words: list[str]) -> str | None:
    text = " ".join(words)
    return next((floor for floor, place in _PLACES.items() if place in text), None)
