"""The red box of a move: read from numbers, core's bounding boxes or a mask, and drawn into an image.

The published code draws none. The color and the width of the line are measured on published images: pure red,
about 4 pixels at 1024 x 1024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .buckets import BASE, Rect

RED = (1.0, 0.0, 0.0)
ON = 0.5  # threshold of a mask
BOX_SIDES = ("x", "y", "width", "height")  # core's names
PixelRect = tuple[int, int, int, int]  # (left, top, right, bottom), right and bottom exclusive


def line_width(height: int, width: int) -> int:
    """Pixels: 4 at 1024 x 1024, in proportion to the image's side, 2 at least."""
    return max(2, math.floor(4 * math.sqrt(width * height) / BASE + 0.5))


def round_box(box: Rect, height: int, width: int) -> PixelRect:
    """The corners as whole pixels, clipped to the image; a ValueError if nothing is left."""
    if not all(math.isfinite(corner) for corner in box):
        raise ValueError(f"Expected a box of four numbers, got {format_box(box)}. Draw it again.")
    left, top, right, bottom = (math.floor(corner + 0.5) for corner in box)
    if right <= left or bottom <= top:
        raise ValueError(
            f"Expected a box with width and height, got the empty {format_box(box)}. Draw the box where the "
            "object shall go."
        )
    clipped = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise ValueError(
            f"Expected a box inside the image of {width} x {height} (width x height), got {format_box(box)}, "
            "which lies outside. Draw it in pixels of this image."
        )
    return clipped


def draw_red_box(image: Tensor, box: Rect) -> Tensor:
    """(h, w, 3) with the outline inside the box; a box no larger than two lines is filled."""
    height, width = image.shape[:2]
    left, top, right, bottom = round_box(box, height, width)
    line = line_width(height, width)
    drawn = image.clone()
    red = image.new_tensor(RED)
    drawn[top:min(top + line, bottom), left:right] = red
    drawn[max(bottom - line, top):bottom, left:right] = red
    drawn[top:bottom, left:min(left + line, right)] = red
    drawn[top:bottom, max(right - line, left):right] = red
    return drawn  # fmt: skip


def require_target(box: Rect, height: int, width: int) -> tuple[Rect, list[str]]:
    """The target box inside the image, and notes; ValueError for one outside or of one pixel."""
    left, top, right, bottom = round_box(box, height, width)
    if (right - left) * (bottom - top) == 1:
        raise ValueError(
            f"Expected a box in which the object has room, got one of one pixel, {format_box(box)}. Draw a "
            "larger one."
        )
    if (left, top, right, bottom) == tuple(math.floor(corner + 0.5) for corner in box):
        return box, []
    inside = float(left), float(top), float(right), float(bottom)
    return inside, [
        f"The box {format_box(box)} reaches over the edge of the image of {width} x {height}: the part "
        f"inside, {format_box(inside)}, is used."
    ]


def box_from_sides(x: float, y: float, width: float, height: float) -> Rect:
    """Core's form, a corner and two sides, as a Rect."""
    return x, y, x + width, y + height


def boxes_from_core(boxes: Any) -> list[Rect]:
    """One box per image of core's BOUNDING_BOX; several for one image are refused.

    It is {x, y, width, height}, a list of those for one image, or a list of such lists.
    """
    if isinstance(boxes, Mapping):
        boxes = [[boxes]]
    elif isinstance(boxes, Sequence) and boxes and isinstance(boxes[0], Mapping):
        boxes = [boxes]
    if not isinstance(boxes, Sequence) or isinstance(boxes, str) or not boxes:
        got = "none" if boxes in ([], None) else repr(boxes)[:80]
        raise ValueError(
            f"Expected a bounding box, got {got}. Draw one in core's Create Bounding Boxes, or wire Bounding "
            "Box."
        )
    return [_only_box(frame, index) for index, frame in enumerate(boxes)]


def boxes_from_masks(masks: Tensor, height: int, width: int) -> list[Rect]:
    """The bounding box of each mask of (b, h, w), which must have the image's size."""
    if masks.ndim != 3:
        masks = masks.reshape(-1, *masks.shape[-2:])
    if tuple(masks.shape[1:]) != (height, width):
        raise ValueError(
            f"Expected a mask of the image's size, {width} x {height} (width x height), got "
            f"{masks.shape[2]} x {masks.shape[1]}. Draw it on this image."
        )
    return [_bounds(mask, index) for index, mask in enumerate(masks)]


def broadcast_boxes(boxes: list[Rect], images: int) -> list[Rect]:
    """One box per image; a single one serves all."""
    if len(boxes) == 1:
        return boxes * images
    if len(boxes) != images:
        raise ValueError(
            f"Expected one box, or one for each of {images} images, got boxes for {len(boxes)} images. "
            "Give as many boxes as images."
        )
    return boxes


def format_box(box: Sequence[float]) -> str:
    """A box as core writes it: corner and sides."""
    left, top, right, bottom = box
    return f"x {left:.6g}, y {top:.6g}, {right - left:.6g} wide, {bottom - top:.6g} high"


def _only_box(frame: Any, index: int) -> Rect:
    if not isinstance(frame, Sequence) or len(frame) != 1:
        count = len(frame) if isinstance(frame, Sequence) else 0
        do = "Move one object at a time: keep one box, or edit again for the next." if count else "Draw one."
        raise ValueError(f"Expected one box for image {index}, got {count}. {do}")
    try:
        sides = [float(frame[0][side]) for side in BOX_SIDES]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a box with x, y, width and height for image {index}, got {frame[0]!r}. Wire core's "
            "Bounding Box."
        ) from error
    return box_from_sides(*sides)


def _bounds(mask: Tensor, index: int) -> Rect:
    on = mask >= ON
    rows, columns = torch.nonzero(on.any(dim=1)).flatten(), torch.nonzero(on.any(dim=0)).flatten()
    if not len(rows):
        raise ValueError(
            f"Expected a mask with white where the object shall go, got mask {index} without a pixel. "
            "Paint the target."
        )
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
