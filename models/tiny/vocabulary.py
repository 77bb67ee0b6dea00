"""The vocabulary of the tiny text encoder, in the order of its embedding rows, and its synonyms.

The vocabulary is that of the training captions, those of the procedural world; a test holds that both agree.
"""

from __future__ import annotations

import re

from .chinese import translate_chinese

VOCABULARY: tuple[str, ...] = (
    "a", "and", "back", "ball", "behind", "blue", "box", "checkered", "cone", "cyan", "cylinder", "floor",
    "from", "front", "grass", "green", "in", "large", "left", "next", "of", "on", "orange", "paving", "pink",
    "purple", "red", "right", "room", "sand", "shiny", "small", "stones", "the", "tiled", "to", "wooden",
    "yellow",
)  # fmt: skip
SYNONYMS: dict[str, str] = {
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


def normalize_words(text: str) -> list[str]:
    """Lower-case words without punctuation, synonyms replaced, Chinese ones in English; other scripts are not
    read.
    """
    return [SYNONYMS.get(word, word) for word in re.findall(r"[a-z0-9]+", translate_chinese(text)[0].lower())]
