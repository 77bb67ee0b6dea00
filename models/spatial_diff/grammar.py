"""The tiny editor's instructions: their words, and what one names.

The grammar, with OBJECT = "the [COLOR] SHAPE" and DISTANCE = "half a metre" | "one metre" | "one and a half
metres" (one metre where it is left out):

    ("move" | "shift" | "slide") OBJECT [DISTANCE]
        ("to the left" | "to the right" | "towards the camera" | "away from the camera")
    ("move" | "put" | "place") OBJECT
        ("to the left of" | "to the right of" | "in front of" | "behind" | "next to") OBJECT
    ("move" | "put" | "place") OBJECT "between" OBJECT "and" OBJECT
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from torch import Tensor

from ..tiny.text import tokenize
from ..tiny.vocabulary import normalize_words

COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("ball", "box", "cylinder", "cone")
# in the order of the embedding's rows
VOCABULARY: tuple[str, ...] = (
    "a", "and", "away", "ball", "behind", "between", "blue", "box", "camera", "cone", "cyan", "cylinder",
    "from", "front", "green", "half", "in", "left", "metre", "metres", "move", "next", "of", "one", "orange",
    "pink", "place", "purple", "put", "red", "right", "shift", "slide", "the", "to", "towards", "yellow",
)  # fmt: skip
MORE_SYNONYMS = {"meter": "metre", "meters": "metres", "toward": "towards"}
WORDS = 16  # tokens; the longest instruction of the grammar has 14 words


@dataclass(frozen=True)
class Named:
    """An object as an instruction names it; the color is "" if it is left out."""

    shape: str
    color: str = ""

    def __str__(self) -> str:
        return f"{self.color} {self.shape}".strip()


def normalize(text: str) -> str:
    """Lower-case words without punctuation, synonyms replaced, as the encoder reads them."""
    return " ".join(MORE_SYNONYMS.get(word, word) for word in normalize_words(text))


def tokenize_instructions(texts: list[str]) -> Tensor:
    """Ids (b, n) int64; the empty instruction is all padding."""
    return tokenize([normalize(text) for text in texts], VOCABULARY, WORDS)


def mirror_instruction(text: str) -> str:
    """The instruction for the mirrored image: left and right exchanged."""
    return re.sub(r"\b(left|right)\b", lambda match: "right" if match[0] == "left" else "left", text)


def find_objects(text: str) -> list[Named]:
    """The objects that an instruction names, the moved one first."""
    found, color = [], ""
    for word in normalize(text).split():
        if word in SHAPES:
            found.append(Named(word, color))
        color = word if word in COLORS else ""
    return found


def explain_instruction(text: str) -> str | None:
    """A sentence about what the tiny editor cannot read in an instruction; None if it can read all."""
    words = normalize(text).split()
    unknown = list(dict.fromkeys(word for word in words if word not in VOCABULARY))
    if unknown:
        near = {word: difflib.get_close_matches(word, VOCABULARY, 1, 0.6) for word in unknown}
        named = ", ".join(
            f"{word!r}" + (f" (nearest: {near[word][0]!r})" if near[word] else "") for word in unknown
        )
        return f"Expected the tiny editor's words, {', '.join(VOCABULARY)}; got {named}. Use those words."
    if len(words) > WORDS:
        return f"Expected at most {WORDS} words, got {len(words)}. Shorten the instruction."
    if not find_objects(text):
        return f"Expected an instruction that names an object, got {text!r}. Name one, as in: the red ball."
    return None
