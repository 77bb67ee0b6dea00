"""Sentences that move an object, in the grammar of the training data.

    move OBJECT DISTANCE DIRECTION
    move OBJECT RELATION OBJECT
    move OBJECT between OBJECT and OBJECT

Left and right, towards and away are the viewer's, along the ground.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

DISTANCES = {0.5: "half a metre", 1.0: "one metre", 1.5: "one and a half metres"}
DIRECTIONS = ("to the left", "to the right", "towards the camera", "away from the camera")
RELATIONS = ("to the left of", "to the right of", "in front of", "behind", "next to")
ELEVATION = math.radians(25.0)  # by which the camera is taken to look down, to read depth off an image's rows
NEAREST = 0.25  # metres; below it the shortest distance is no longer the nearest
ASIDE = 0.5  # part of the main motion from which on the other axis is worth a note
LONGEST_NAME = 80
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Instruction:
    """A sentence, and what to know of it."""

    text: str
    notes: tuple[str, ...] = ()


def move_along(name: str, direction: str, distance: str) -> str:
    """The sentence that moves an object by a distance."""
    require_choice("direction", direction, DIRECTIONS)
    require_choice("distance", distance, tuple(DISTANCES.values()))
    return f"move {name_object(name)} {distance} {direction}"


def move_beside(name: str, relation: str, reference: str) -> str:
    """The sentence that moves an object to where a relation to another one holds."""
    require_choice("relation", relation, RELATIONS)
    first, second = name_object(name), name_object(reference)
    if first == second:
        raise ValueError(
            f'Expected another object as the reference, got "{second}" for both. Name the object that stays.'
        )
    return f"move {first} {relation} {second}"


def move_between(name: str, first: str, second: str) -> str:
    """The sentence that moves an object to the middle of two others."""
    names = [name_object(each) for each in (name, first, second)]
    if len(set(names)) < 3:
        raise ValueError(f"Expected three objects, got {', '.join(names)}. Name two that stay.")
    return f"move {names[0]} between {names[1]} and {names[2]}"


def move_to_point(name: str, box: Box, point: tuple[float, float], height: float) -> Instruction:
    """The sentence whose motion comes nearest to a point, where the object's foot shall stand.

    The object's `height` in metres gives the scale of its box; rows become depth for a camera that looks
    down by 25 degrees. One sentence has one direction, so the longer motion counts.
    """
    left, top, right, bottom = box
    if right - left < 1 or bottom - top < 1:
        raise ValueError(
            f"Expected a box of at least one pixel around the object, got {right - left:g} x "
            f"{bottom - top:g}. Draw it around the object."
        )
    if not 0 < height < math.inf:
        raise ValueError(f"Expected the object's height above 0 metres, got {height:g}. Correct it.")
    metres = height / (bottom - top)
    across = (point[0] - (left + right) / 2) * metres
    away = (bottom - point[1]) * metres / math.sin(ELEVATION)
    main, other = sorted((across, away), key=abs, reverse=True)
    if abs(main) < NEAREST:
        raise ValueError(
            f"Expected a point at least {NEAREST:g} m from where the object stands, got about "
            f"{abs(main):.2f} m. Choose a point farther away."
        )
    if abs(across) >= abs(away):
        direction = DIRECTIONS[0 if across < 0 else 1]
    else:
        direction = DIRECTIONS[2 if away < 0 else 3]
    said = min(DISTANCES, key=lambda distance: abs(distance - abs(main)))
    notes = [f"About {abs(main):.2f} m {direction}, said as {DISTANCES[said]}."]
    if abs(main) > max(DISTANCES) + NEAREST:
        notes.append(f"{DISTANCES[max(DISTANCES)].capitalize()} is the longest distance of the grammar.")
    if abs(other) > ASIDE * abs(main):
        notes.append(
            f"The point also lies {abs(other):.2f} m along the other axis: one sentence has one direction, "
            "so move the object a second time."
        )
    return Instruction(move_along(name, direction, DISTANCES[said]), tuple(notes))


def name_object(name: str) -> str:
    """The name with "the" before it. ValueError for one that no sentence can have."""
    words = " ".join(str(name).split()).rstrip(".,;")
    bare = words.removeprefix("the ").removeprefix("The ")
    if not bare or bare.lower() == "the":
        raise ValueError('Expected the name of an object, got none. Write what it is: "the red ball".')
    if len(bare) > LONGEST_NAME:
        raise ValueError(
            f"Expected the name of an object of at most {LONGEST_NAME} characters, got {len(bare)}. Name it "
            'in a few words: "the red ball".'
        )
    return f"the {bare}"


def bounds_of_box(boxes: Any) -> Box:
    """The box of core's BOUNDING_BOX, which must be a single one: {x, y, width, height} in pixels."""
    found = boxes
    while isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Mapping):
        got = len(boxes) if isinstance(boxes, Sequence) and not isinstance(boxes, str) else repr(boxes)[:60]
        raise ValueError(f"Expected one box around the object, got {got}. Keep a single one.")
    try:
        x, y, width, height = (float(found[side]) for side in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a box with x, y, width and height, got {repr(found)[:60]}. Wire core's Bounding Box."
        ) from error
    return x, y, x + width, y + height


def bounds_of_mask(mask: Tensor, point: tuple[float, float]) -> Box:
    """The bounding box of a mask (1, h, w), whose image must hold the point."""
    if mask.ndim != 3 or len(mask) != 1:
        raise ValueError(f"Expected one mask (1, h, w), got {tuple(mask.shape)}. Give the object's alone.")
    height, width = mask.shape[1:]
    if not (0 <= point[0] < width and 0 <= point[1] < height):
        raise ValueError(
            f"Expected a point in the mask's image of {width} x {height} (width x height), got "
            f"{point[0]:g}, {point[1]:g}. Choose one inside."
        )
    on = mask[0] >= 0.5
    rows, columns = on.any(dim=1).nonzero().flatten(), on.any(dim=0).nonzero().flatten()
    if not len(rows):
        raise ValueError("Expected a mask with white where the object is, got none. Paint the object.")
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def require_choice(what: str, value: str, known: Sequence[str]) -> None:
    """ValueError unless a value is one of the grammar's."""
    if value not in known:
        raise ValueError(
            f"Expected the {what} as one of {', '.join(known)}, got {value!r}. Choose one of these."
        )
