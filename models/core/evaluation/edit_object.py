"""The edited object before and after: found by its colors among the changed pixels, without a detector.

The camera has to stand still, or the image before to be warped into the camera after (edit_change.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .edit_change import grow_mask

_SEARCH_SIZE = 96  # longer side of the maps in which a displacement is searched
_SCALES = tuple(2 ** (step / 4) for step in range(-5, 6))
_COLORS = 384  # colors of a palette
_PIXELS = 1 << 14  # pixels compared with a palette at once
_BRIGHTNESS = 0.4  # weight of brightness beside the two color differences: light changes with the position
_SHADOW = (0.35, 0.97)  # brightness of a shadow, of that of the lit surface
_SHADOW_HUE = 0.05  # distance between the chromaticities of a surface in light and in shadow
_RELIEF = 0.02  # by which an object's disparity exceeds that of its surroundings, relatively
_LEAST_NEW = 0.12  # of the object's area: fewer changed pixels of its colors are no displaced object
_UNCHANGED = 0.6  # of the pixels that the object left: from here on the original is still there
_OVERLAP = 0.4  # of the object's area, shared by its masks before and after: no copy beside an original
_VISIBLE_LEFT = 0.15  # of the object's area: less left behind cannot be judged


@dataclass(frozen=True)
class ObjectMatch:
    """The object in the image after, in the pixels of the image before."""

    mask: Tensor  # (h, w) bool, all False if it is gone
    remained: bool  # whether the original is still there beside it
    consistency: float  # intersection of the color histograms, 1 for equal ones

    @property
    def is_found(self) -> bool:
        return bool(self.mask.any())


def split_change(before: Tensor, after: Tensor, changed: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Changed pixels where the image before shows something that its surroundings do not, and those where
    the image after does: the object's masks before and after, (h, w) each.

    The mask before lies nearer than its surroundings in the depth before, 0 where there is none. Shadows that
    come or go are left out: they keep the color of the surface.
    """
    rim = max(3, max(changed.shape) // 48)
    closed = grow_mask(grow_mask(changed, rim), -rim)
    known = ~grow_mask(closed, 2)
    background = fill_by_surroundings(before, known)
    far = fill_by_surroundings(_disparity(depth), known & (depth > 0))[..., 0]
    stands_out = [(_opponent(image) - _opponent(background)).norm(dim=-1) for image in (before, after)]
    shadow = is_shadow(before, after) | is_shadow(after, before)
    relief = _disparity(depth)[..., 0] / far.clamp_min(1e-6) - 1
    old = closed & (relief > _RELIEF) & (stands_out[0] > 0.5 * stands_out[1])
    old = grow_mask(grow_mask(old, -1), 1)
    return largest_region(old), largest_region(changed & ~old & ~shadow & (stands_out[1] > stands_out[0]))


def _disparity(depth: Tensor) -> Tensor:
    """1 / depth (h, w), 0 where there is none, as an image (h, w, 3)."""
    return torch.where(depth > 0, 1 / depth.clamp_min(1e-6), torch.zeros_like(depth))[..., None].expand(
        -1, -1, 3
    )


def fill_by_surroundings(image: Tensor, known: Tensor) -> Tensor:
    """The image (h, w, 3) with unknown pixels filled by known ones around them, near ones first."""
    layers = rearrange(
        torch.cat([image * known[..., None], known[..., None].float()], -1), "h w c -> 1 c h w"
    )
    filled, size = layers, layers.shape[-2:]
    for step in range(1, 8):
        small = F.interpolate(layers, [max(1, n >> step) for n in size], mode="area")
        wide = F.interpolate(small, size, mode="bilinear", align_corners=False)
        wide = wide / wide[:, 3:].clamp_min(1e-4) * (wide[:, 3:] > 0.02)
        filled = torch.where(filled[:, 3:] > 0, filled, wide)
    return rearrange(filled[0, :3], "c h w -> h w c")


def is_shadow(lit: Tensor, dark: Tensor) -> Tensor:
    """True (h, w) where the second image has the first one's surface with less light."""
    brightness = [image.sum(-1, keepdim=True).clamp_min(0.05) for image in (lit, dark)]
    ratio = (brightness[1] / brightness[0])[..., 0]
    hue = (lit / brightness[0] - dark / brightness[1]).norm(dim=-1)
    return (ratio > _SHADOW[0]) & (ratio < _SHADOW[1]) & (hue < _SHADOW_HUE)


def match_object(before: Tensor, after: Tensor, changed: Tensor, old: Tensor) -> ObjectMatch:
    """Find the object of the mask `old` (h, w) again, from the images (h, w, 3) and the changed pixels."""
    object_like = _classify_pixels(before, after, changed, old)
    fresh = changed & object_like & ~(old & ~changed)
    kept = old & object_like
    area = int(old.sum())
    if int((fresh & ~old).sum()) < _LEAST_NEW * area:
        found = largest_region(kept | (fresh & grow_mask(old, 2)))
        if int(found.sum()) < 0.25 * area:
            found = torch.zeros_like(old)
        return ObjectMatch(found, False, _consistency(before, after, old, found))
    candidate = _search_displacement(old, fresh & ~old, kept)
    near = grow_mask(candidate, max(2, max(old.shape) // 64))
    if int((candidate & old).sum()) > _OVERLAP * area:
        # rotated or moved little: all pixels of the object's colors belong to it
        found = largest_region(fresh | kept)
        return ObjectMatch(found, False, _consistency(before, after, old, found))
    found = largest_region((fresh | kept) & near)
    left = old & ~near
    remained = (
        int(left.sum()) > _VISIBLE_LEFT * area and float((left & ~changed).sum() / left.sum()) > _UNCHANGED
    )
    return ObjectMatch(found, remained, _consistency(before, after, old, found))


def _opponent(image: Tensor) -> Tensor:
    """Brightness and two color differences (h, w, 3); brightness weighs less."""
    red, green, blue = image.unbind(-1)
    bright = (red + green + blue) / math.sqrt(3)
    return torch.stack(
        [_BRIGHTNESS * bright, (red - green) / math.sqrt(2), (red + green - 2 * blue) / math.sqrt(6)], -1
    )


def _classify_pixels(before: Tensor, after: Tensor, changed: Tensor, old: Tensor) -> Tensor:
    """True (h, w) where the image after is nearer to the object's colors than to the background's."""
    colors, now = _opponent(before), _opponent(after)
    core = grow_mask(old, -1)
    palette = _sample_colors(colors[core if bool(core.any()) else old])
    others = _sample_colors(colors[~grow_mask(old, 2)])
    # the object can only be there; one pixel more for the majority filter
    region = grow_mask(changed | old, 1)
    pixels = now[region]
    to_object, to_others = (
        torch.cat([torch.cdist(chunk, each).amin(-1) for chunk in pixels.split(_PIXELS)])
        for each in (palette, others)
    )
    # outside the mask before, a pixel's own earlier color is background, too
    own = (pixels - colors[region]).norm(dim=-1)
    to_others = torch.where(old[region], to_others, torch.minimum(to_others, own))
    votes = torch.zeros(old.shape, device=old.device)
    votes[region] = (to_object < to_others).float()
    return F.avg_pool2d(votes[None, None], 3, 1, 1)[0, 0] > 0.5


def _sample_colors(colors: Tensor) -> Tensor:
    """At most _COLORS of the colors (n, 3), evenly chosen in the order of their brightness."""
    colors = colors[colors[:, 0].argsort()]
    index = torch.linspace(0, len(colors) - 1, min(len(colors), _COLORS), device=colors.device)
    return colors[index.round().long()]


def _search_displacement(old: Tensor, fresh: Tensor, kept: Tensor) -> Tensor:
    """The mask before (h, w), displaced and scaled to the largest intersection over union with the new pixels
    `fresh`; pixels of `kept` count as neither."""
    height, width = old.shape
    shrink = min(1.0, _SEARCH_SIZE / max(height, width))
    small = (round(height * shrink), round(width * shrink))
    fresh_map, kept_map, template = (
        F.interpolate(mask[None, None].float(), small, mode="area")[0, 0] for mask in (fresh, kept, old)
    )
    total, best = float(fresh_map.sum()), (-1.0, 1.0, 0, 0)
    frame = (2 * small[0], 2 * small[1])
    spectra = [torch.fft.rfft2(each, frame) for each in (fresh_map, kept_map)]
    for scale in _SCALES:
        moved = _scale_mask(template, scale)
        if moved is None:
            continue
        spectrum = torch.fft.rfft2(moved, frame).conj()
        covered, neutral = (torch.fft.irfft2(each * spectrum, frame) for each in spectra)
        union = total + float(moved.sum()) - covered - neutral
        overlap = covered / union.clamp_min(1e-3)
        value = float(overlap.max())
        if value > best[0]:
            row, column = divmod(int(overlap.argmax()), frame[1])
            row = row - frame[0] if row > small[0] else row
            column = column - frame[1] if column > small[1] else column
            best = (value, scale, row, column)
    scaled = F.pad(_scale_mask(template, best[1]), (0, small[1], 0, small[0]))
    displaced = torch.roll(scaled, best[2:], (0, 1))[None, None, : small[0], : small[1]]
    return F.interpolate(displaced, (height, width), mode="bilinear", align_corners=False)[0, 0] > 0.4


def _scale_mask(template: Tensor, scale: float) -> Tensor | None:
    """The map (h, w) with its content scaled about its center of mass, or None if it leaves the map."""
    height, width = template.shape
    rows, columns = (torch.arange(n, device=template.device) + 0.5 for n in (height, width))
    mass = template.sum()
    y, x = (template.sum(1) * rows).sum() / mass, (template.sum(0) * columns).sum() / mass
    grid_y, grid_x = torch.meshgrid((rows - y) / scale + y, (columns - x) / scale + x, indexing="ij")
    grid = torch.stack([2 * grid_x / width - 1, 2 * grid_y / height - 1], -1)
    scaled = F.grid_sample(template[None, None], grid[None], align_corners=False)[0, 0]
    return scaled if float(scaled.sum()) > 2 else None


def _consistency(before: Tensor, after: Tensor, old: Tensor, new: Tensor) -> float:
    """Intersection of the histograms of the object's colors, without brightness."""
    if not bool(new.any()):
        return 0.0
    first, second = (_histogram(image[mask]) for image, mask in ((before, old), (after, new)))
    return float(torch.minimum(first, second).sum())


def _histogram(colors: Tensor) -> Tensor:
    """Smoothed histogram of chromaticity of colors (n, 3), of sum 1."""
    share = colors / colors.sum(-1, keepdim=True).clamp_min(0.05)
    bins = (share[:, :2] * 16).long().clamp(0, 15)
    counts = torch.bincount(bins[:, 0] * 16 + bins[:, 1], minlength=256).float().reshape(1, 1, 16, 16)
    smooth = F.avg_pool2d(counts, 3, 1, 1, divisor_override=9)
    return smooth / smooth.sum().clamp_min(1e-6)


def largest_region(mask: Tensor) -> Tensor:
    """The largest 8-connected region of a mask (h, w)."""
    from scipy import ndimage

    labels, count = ndimage.label(mask.cpu().numpy(), structure=[[1] * 3] * 3)
    if count == 0:
        return mask
    regions = torch.from_numpy(labels).to(mask.device)
    sizes = torch.bincount(regions.flatten(), minlength=count + 1)[1:]
    return regions == int(sizes.argmax()) + 1


def mask_center(mask: Tensor) -> tuple[float, float]:
    """The mean position (x, y) of the pixels of a mask (h, w), in pixels."""
    rows, columns = mask.nonzero().float().unbind(-1)
    return float(columns.mean()) + 0.5, float(rows.mean()) + 0.5
