"""What changed between an image and its edit: the image before seen by the camera after, changed pixels,
and a red rectangle that was drawn as an instruction and is still there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..geometry.camera import pixel_centers, project, transform_points, unproject

_CHANGED = 0.1  # length of a color difference that counts as a change
_NOISE = 4.0  # or this many times the median difference, where an edit changes all colors a little
_LINE_SHARE = 0.6  # of the outline of a rectangle, from which on red lines are a box
_EXPECTED_SHARE = 0.25  # the same where a box is expected
_LEAST_SIDE = 5  # thickest lines: a smaller region is no outline
_RED, _NOT_RED = 0.7, 0.35  # of a pure red: at least, and at most of green and blue


@dataclass(frozen=True)
class Warped:
    """An image as another camera sees it."""

    image: Tensor  # (h, w, 3), 0 where nothing is known
    depth: Tensor  # (h, w), 0 where nothing is known
    known: Tensor  # (h, w) bool


def warp_image(
    image: Tensor, depth: Tensor, intrinsics: Tensor, pose: Tensor, *, focal_ratio: float = 1.0
) -> Warped:
    """The image (h, w, 3) with its depth (h, w), 0 where there is none, splatted into the camera that `pose`
    (4, 4) leads to; the nearest point of a pixel counts, gaps of a pixel are closed."""
    height, width = depth.shape
    matrix = intrinsics.clone()
    matrix[0, 0], matrix[1, 1] = matrix[0, 0] * focal_ratio, matrix[1, 1] * focal_ratio
    points = transform_points(
        unproject(pixel_centers(height, width, device=depth.device), depth, intrinsics), pose
    )
    pixels, z = project(points, matrix)
    column, row = pixels[..., 0].floor(), pixels[..., 1].floor()
    inside = (depth > 0) & (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = (row * width + column)[inside].long()
    nearest = torch.full((height * width,), math.inf, device=depth.device)
    nearest = nearest.scatter_reduce(0, index, z[inside], "amin")
    front = z[inside] <= nearest[index] * 1.01
    colors = torch.zeros(height * width, 4, device=depth.device)
    ones = torch.ones_like(image[..., :1])
    colors.index_add_(0, index[front], torch.cat([image, ones], -1)[inside][front])
    count = colors[:, 3:]
    mean = rearrange(colors[:, :3] / count.clamp_min(1), "(h w) c -> h w c", h=height)
    known = rearrange(count[:, 0] > 0, "(h w) -> h w", h=height)
    return _close_gaps(mean, torch.where(known, rearrange(nearest, "(h w) -> h w", h=height), 0.0), known)


def _close_gaps(image: Tensor, depth: Tensor, known: Tensor) -> Warped:
    """Unknown pixels with at least five known neighbors get their mean."""
    layers = torch.cat([image, depth[..., None], torch.ones_like(depth)[..., None]], -1) * known[..., None]
    total = F.avg_pool2d(rearrange(layers, "h w c -> 1 c h w"), 3, 1, 1, divisor_override=1)[0]
    count = total[4]
    fill = ~known & (count >= 5)
    mean = rearrange(total[:4] / count.clamp_min(1), "c h w -> h w c")
    merged = torch.where(fill[..., None], mean, torch.cat([image, depth[..., None]], -1))
    return Warped(merged[..., :3], merged[..., 3], known | fill)


def changed_pixels(expected: Tensor, after: Tensor, known: Tensor) -> Tensor:
    """True (h, w) where the image after differs from the expected one (h, w, 3), which is known there.

    A pixel may differ by as much as noise does, and may have moved by one.
    """
    first, second = (_smooth(image) for image in (expected, after))
    known = known & ~_grow(~known, 1) if not bool(known.all()) else known
    differences = torch.stack([
        (first.roll(shift, (0, 1)) - second).norm(dim=-1)
        for shift in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
    ]).amin(0)  # fmt: skip
    if not bool(known.any()):
        return torch.zeros_like(known)
    limit = max(_CHANGED, _NOISE * float(differences[known].median()))
    return known & (differences > limit)


def _smooth(image: Tensor) -> Tensor:
    padded = F.pad(rearrange(image, "h w c -> 1 c h w"), (1, 1, 1, 1), mode="replicate")
    return rearrange(F.avg_pool2d(padded, 3, 1), "1 c h w -> h w c")


def grow_mask(mask: Tensor, pixels: int) -> Tensor:
    """A mask (h, w) with a rim of so many pixels; a negative number takes one away."""
    return _grow(mask, pixels) if pixels >= 0 else ~_grow(~mask, -pixels)


def _grow(mask: Tensor, pixels: int) -> Tensor:
    if pixels == 0:
        return mask
    return F.max_pool2d(mask[None, None].float(), 2 * pixels + 1, 1, pixels)[0, 0] > 0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, the right and lower end excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        return max(0, self.right - self.left) * max(0, self.bottom - self.top)

    def intersection_over_union(self, other: Box) -> float:
        """Area of the intersection over that of the union."""
        shared = Box(
            max(self.left, other.left), max(self.top, other.top),
            min(self.right, other.right), min(self.bottom, other.bottom),
        ).area  # fmt: skip
        return shared / max(1, self.area + other.area - shared)


def box_of_mask(mask: Tensor) -> Box:
    """The rectangle around a mask (h, w) with at least one pixel."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def find_red_box(image: Tensor, expected: Box | None = None) -> Box | None:
    """A rectangle drawn with thin lines of pure red into an image (h, w, 3), or None.

    Where one is expected, a quarter of its outline there is enough; elsewhere three fifths.
    """
    thin, thickest = red_lines(image)
    if expected is not None:
        return expected if _outline_share(thin, expected, thickest) > _EXPECTED_SHARE else None
    from scipy import ndimage

    labels, _ = ndimage.label(thin.cpu().numpy(), structure=[[1] * 3] * 3)
    for rows, columns in ndimage.find_objects(labels):
        box = Box(columns.start, rows.start, columns.stop, rows.stop)
        large = min(box.right - box.left, box.bottom - box.top) >= _LEAST_SIDE * thickest
        if large and _outline_share(thin, box, thickest) > _LINE_SHARE:
            return box
    return None


def red_lines(image: Tensor) -> tuple[Tensor, int]:
    """True (h, w) on thin lines of pure red in an image (h, w, 3), and how thick in pixels they may be."""
    red = (image[..., 0] > _RED) & (image[..., 1:] < _NOT_RED).all(-1)
    thickest = max(3, math.ceil(0.008 * max(red.shape)))
    open_by = thickest // 2 + 1
    return red & ~_grow(~_grow(~red, open_by), open_by), thickest


def _outline_share(thin: Tensor, box: Box, width: int) -> float:
    """Fraction of the rectangle's outline beside which, within `width` pixels, a thin line runs.

    Each side counts by the smaller of its coverage and its red's straightness, so that a thin red object is
    no box.
    """
    height, full = thin.shape
    left, top = max(0, box.left), max(0, box.top)
    right, bottom = min(full, box.right), min(height, box.bottom)
    if right - left < 4 or bottom - top < 4:
        return 0.0
    sides = [
        thin[max(0, top - width) : top + width, left:right].any(0),
        thin[max(0, bottom - width) : bottom + width, left:right].any(0),
        thin[top:bottom, max(0, left - width) : left + width].any(1),
        thin[top:bottom, max(0, right - width) : right + width].any(1),
    ]
    inner = thin[top + width : bottom - width, left + width : right - width]
    clutter = float(inner.float().mean()) if inner.numel() else 0.0
    covered = sum(int(side.sum()) for side in sides) / sum(side.numel() for side in sides)
    return covered - clutter
