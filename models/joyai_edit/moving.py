"""The inputs of a move: one prompt and one image with its red box for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.pictures import HAS_ALPHA, NO_ALPHA, read_pictures
from .boxes import (
    BOX_SIDES,
    box_from_sides,
    boxes_from_core,
    boxes_from_masks,
    broadcast_boxes,
    draw_red_box,
    format_box,
    require_target,
)
from .buckets import Rect, core_crop, find_bucket
from .framing import area
from .prompts import move_prompt, name_notes
from .restore import FramedImage, repeat_single, require_framed


@dataclass(frozen=True)
class Move:
    """What core's text encoder node needs to move one object."""

    prompt: str
    image: Tensor  # (1, h, w, 3) with the red box
    box: dict[str, int]  # core's BOUNDING_BOX, in pixels of the image before the fit
    notes: tuple[str, ...]


def split_images(batches: Sequence[Tensor]) -> tuple[list[Tensor], list[str]]:
    """Images (1, h, w, 3) of IMAGE batches of any sizes, on the CPU, and notes on their conversion."""
    images, notes = [], []
    for batch in batches:
        pictures = read_pictures(batch)
        notes += [NO_ALPHA if note == HAS_ALPHA else note for note in pictures.notes]
        images += list(pictures.rgb.cpu().split(1))
    return images, list(dict.fromkeys(notes))


def split_masks(batches: Sequence[Tensor]) -> list[Tensor]:
    """Masks (h, w) of MASK batches of any sizes, on the CPU."""
    return [mask for batch in batches for mask in batch.reshape(-1, *batch.shape[-2:]).cpu()]


def boxes_from_numbers(sides: Sequence[Sequence[float]], count: int) -> list[Rect]:
    """Boxes of x, y, width and height, each one number or one for each image."""
    columns = [repeat_single(values, count, name) for name, values in zip(BOX_SIDES, sides, strict=True)]
    return [box_from_sides(*row) for row in zip(*columns, strict=True)]


def boxes_from_frames(values: Sequence[Any], count: int) -> list[Rect]:
    """One box per image from the values of core's BOUNDING_BOX sockets."""
    return broadcast_boxes([box for value in values for box in boxes_from_core(value)], count)


def boxes_from_mask_batches(batches: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Rect]:
    """One box per image of MASK batches, which must have the images' sizes (height, width)."""
    masks = repeat_single(split_masks(batches), len(sizes), "mask")
    return [boxes_from_masks(mask[None], *size)[0] for mask, size in zip(masks, sizes, strict=True)]


def prepare_move(name: str, image: Tensor, box: Rect, framed: FramedImage | None) -> Move:
    """Prompt and image (1, h, w, 3) with its red box; `box` is in pixels of the image before the fit."""
    size = tuple(image.shape[1:3]) if framed is None else framed.framing.size
    box, notes = require_target(box, *size)
    drawn = box
    if framed is None:
        notes += _cropping_notes(size)
    else:
        _check_fitted(image, framed)
        drawn = _in_bucket(box, framed)
    left, top, right, bottom = (round(corner) for corner in box)
    sides = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return Move(move_prompt(name), draw_red_box(image[0], drawn)[None], sides, (*name_notes(name), *notes))


def prepare_moves(
    names: Sequence[str],
    images: Sequence[Tensor],
    boxes: Sequence[Rect],
    framed: Sequence[FramedImage] | None,
) -> list[Move]:
    """`prepare_move` for each image; an error names the image if there are several."""
    count = len(images)
    names = repeat_single(names, count, "object")
    frames = [None] * count if framed is None else require_framed(framed, count)
    moves = []
    for index, row in enumerate(zip(names, images, boxes, frames, strict=True)):
        try:
            move = prepare_move(*row)
        except ValueError as error:
            raise error if count == 1 else ValueError(f"Image {index}: {error}") from error
        notes = move.notes if count == 1 else tuple(f"Image {index}: {note}" for note in move.notes)
        moves.append(replace(move, notes=notes))
    return moves


def reference_sizes(images: Sequence[Tensor], framed: Sequence[FramedImage] | None) -> list[tuple[int, int]]:
    """The sizes (height, width) in whose pixels boxes and masks are: before the fit, where there was one."""
    if framed is None:
        return [(image.shape[1], image.shape[2]) for image in images]
    return [one.framing.size for one in require_framed(framed, len(images))]


def _check_fitted(image: Tensor, framed: FramedImage) -> None:
    rows, columns = framed.framing.bucket
    if tuple(image.shape[1:3]) != (rows, columns):
        raise ValueError(
            f"Expected the fitted image of {columns} x {rows} (width x height), got {image.shape[2]} x "
            f"{image.shape[1]}. Wire the image of Joy: Fit, or take its framing off."
        )


def _in_bucket(box: Rect, framed: FramedImage) -> Rect:
    """The box in the bucket, which must show some of it."""
    mapped, (left, top, right, bottom) = framed.framing.to_bucket(box), framed.framing.placed
    inside = max(mapped[0], left), max(mapped[1], top), min(mapped[2], right), min(mapped[3], bottom)
    if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
        raise ValueError(
            f"Expected a box in the part of the image that Joy: Fit kept, got {format_box(box)}, which was "
            "cropped away. Choose pad in Joy: Fit, or another box."
        )
    return inside


def _cropping_notes(size: tuple[int, int]) -> list[str]:
    bucket = find_bucket(*size)
    if size == bucket:
        return []
    lost = 1 - area(core_crop(size, bucket)) / (size[0] * size[1])
    return [
        f"The image of {size[1]} x {size[0]} has no bucket's size: ComfyUI will crop {100 * lost:.1f}% of "
        f"it and resize it to {bucket[1]} x {bucket[0]}, line and all. Wire Joy: Fit before this node to "
        "keep the framing."
    ]


def stack_images(images: Sequence[Tensor]) -> list[Tensor]:
    """One batch where all images have one size, else each for itself."""
    if len({image.shape for image in images}) == 1:
        return [torch.cat(list(images))]
    return list(images)
