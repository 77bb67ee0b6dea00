"""An image in an exact bucket, and back at its own size, pixel on pixel.

ComfyUI's text encoder node center-crops every image to a bucket and resizes it; one that has a bucket's size
passes through untouched. So the framing is done before, by replicate padding or by a crop, and undone after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.geometry.resize import resize_bicubic
from .boxes import PixelRect
from .buckets import WIDEST, BucketOrder, Rect, Size, core_crop, find_bucket, pad_to_aspect

FitMode = Literal["pad", "crop"]
FIT_MODES: tuple[FitMode, ...] = get_args(FitMode)


@dataclass(frozen=True)
class Framing:
    """Which part of an image lies where in its bucket; sizes are (height, width)."""

    size: Size  # of the image
    taken: PixelRect  # part of the image that the bucket shows, in its pixels
    bucket: Size
    placed: PixelRect  # where that part lies, in pixels of the bucket

    @property
    def is_identity(self) -> bool:
        """Whether the image has the bucket's size already."""
        return self.size == self.bucket and self.taken == self.placed

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Pixels of padding (left, top, right, bottom) in the bucket."""
        left, top, right, bottom = self.placed
        return left, top, self.bucket[1] - right, self.bucket[0] - bottom

    @property
    def cropped(self) -> float:
        """The fraction of the image's area that the bucket leaves out."""
        return 1 - area(self.taken) / (self.size[0] * self.size[1])

    @property
    def padded(self) -> float:
        """The fraction of the bucket's area that is padding."""
        return 1 - area(self.placed) / (self.bucket[0] * self.bucket[1])

    def to_bucket(self, box: Rect) -> Rect:
        """A box in pixels of the image, in pixels of the bucket."""
        return _map(box, self.taken, self.placed)

    def describe(self) -> list[str]:
        """The bucket, the padding and the cropped fraction, a line each."""
        (height, width), (rows, columns) = self.size, self.bucket
        scale = (self.placed[2] - self.placed[0]) / (self.taken[2] - self.taken[0])
        lines = [
            f"Bucket {columns} x {rows} (width x height): {width} x {height} scaled by {scale:.4g}.",
            "No padding.",
            "Nothing is cropped.",
        ]
        if self.padded:
            sides = "left {}, top {}, right {}, bottom {} pixels".format(*self.padding)
            lines[1] = f"Padding: {sides}, {100 * self.padded:.1f}% of the bucket."
        if self.cropped:
            kept = "x {0} to {2}, y {1} to {3}".format(*self.taken)
            lines[2] = f"Cropped: {100 * self.cropped:.1f}% of the image; {kept} is kept."
        return lines + self._remarks()

    def _remarks(self) -> list[str]:
        """What ComfyUI alone would crop, and a note on an aspect ratio far from any bucket."""
        height, width = self.size
        lines = []
        lost = 1 - area(core_crop(self.size, find_bucket(height, width))) / (height * width)
        if lost:
            lines.append(f"ComfyUI alone would crop {100 * lost:.1f}% of the image.")
        aspect = max(width / height, height / width)
        if aspect > WIDEST * 1.02:
            part = f"{100 * self.cropped:.0f}% of the image is cropped away"
            part = part if self.cropped else f"{100 * self.padded:.0f}% of the bucket is padding"
            lines.append(
                f"The image is {aspect:.3g} times as long as wide and the buckets end at {WIDEST:.3g}, so "
                f"{part}: edit it in parts for a better result."
            )
        return lines


def plan_framing(height: int, width: int, mode: FitMode = "pad", order: BucketOrder = "comfyui") -> Framing:
    """The framing of an image of that size in its nearest bucket."""
    if mode not in FIT_MODES:
        raise ValueError(f"Expected a mode of {', '.join(FIT_MODES)}, got {mode!r}. Choose one of them.")
    size, bucket = (height, width), find_bucket(height, width, order)
    rows, columns = bucket
    whole, canvas = (0, 0, width, height), (0, 0, columns, rows)
    if mode == "crop":
        # the largest whole-pixel part of the bucket's aspect ratio, in the middle
        kept = min(height, round(width * rows / columns)), min(width, round(height * columns / rows))
        return Framing(size, _middle(whole, (max(1, kept[0]), max(1, kept[1]))), bucket, canvas)
    scale = pad_to_aspect(size, bucket)[2]
    inside = max(1, min(rows, round(height * scale))), max(1, min(columns, round(width * scale)))
    return Framing(size, whole, bucket, _middle(canvas, inside))


def fit_images(images: Tensor, framing: Framing) -> Tensor:
    """(b, h, w, c) to the bucket: antialiased bicubic resize, replicate padding."""
    _check_size(images, framing.size, "the image that was framed")
    if framing.is_identity:
        return images
    left, top, right, bottom = framing.placed
    pixels = _resize(_cut(images, framing.taken), (bottom - top, right - left))
    x, y, end, below = framing.padding
    return F.pad(pixels.movedim(-1, 1), (x, end, y, below), mode="replicate").movedim(1, -1)


def unfit_images(images: Tensor, framing: Framing) -> Tensor:
    """(b, h, w, c) of the bucket's size to the part of the image that it shows, at the image's scale."""
    _check_size(images, framing.bucket, "the bucket; decode at the width and height of Joy: Fit")
    left, top, right, bottom = framing.taken
    return _resize(_cut(images, framing.placed), (bottom - top, right - left))


def area(rect: PixelRect) -> int:
    """Pixels of a rectangle."""
    left, top, right, bottom = rect
    return (right - left) * (bottom - top)


def uncovered_mask(framing: Framing) -> Tensor:
    """(h, w) bool of the image: what the bucket leaves out."""
    left, top, right, bottom = framing.taken
    mask = torch.ones(framing.size, dtype=torch.bool)
    mask[top:bottom, left:right] = False
    return mask


def _check_size(images: Tensor, size: Size, what: str) -> None:
    if tuple(images.shape[1:3]) != size:
        raise ValueError(
            f"Expected an image of {size[1]} x {size[0]} (width x height), got {images.shape[2]} x "
            f"{images.shape[1]}. It must have the size of {what}."
        )


def _cut(images: Tensor, rect: PixelRect) -> Tensor:
    left, top, right, bottom = rect
    return images[:, top:bottom, left:right]


def _middle(outer: PixelRect, size: Size) -> PixelRect:
    left, top = (outer[2] - size[1]) // 2, (outer[3] - size[0]) // 2
    return left, top, left + size[1], top + size[0]


def _resize(images: Tensor, size: Size) -> Tensor:
    """(b, h, w, c) at another size (height, width)."""
    return resize_bicubic(images.movedim(-1, 1), size).movedim(1, -1)


def _map(box: Rect, source: PixelRect, target: PixelRect) -> Rect:
    across = (target[2] - target[0]) / (source[2] - source[0])
    down = (target[3] - target[1]) / (source[3] - source[1])
    left, top, right, bottom = box
    return (
        target[0] + (left - source[0]) * across, target[1] + (top - source[1]) * down,
        target[0] + (right - source[0]) * across, target[1] + (bottom - source[1]) * down,
    )  # fmt: skip
