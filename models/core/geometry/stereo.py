"""Stereo views: forward warping of an image by its depth, row by row, with masks of the disocclusions.

Nearness is nearest depth / depth: 1 at the nearest depth, 0 at infinity. It needs no unit and no camera, and
is defined for sky.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .view import View, percentile

BAND = 32  # rows: the candidates of a band stay in the processor's cache, those of an image take gigabytes


@dataclass(frozen=True)
class Shifted:
    """Images of one eye. Where ``holes`` is True the image is unknown and black."""

    image: Tensor  # (b, h, w, 3)
    holes: Tensor  # (b, h, w) bool


def stereo_pair(
    view: View, *, parallax: float = 3.0, screen: float = 0.5, edge_rtol: float = 0.04
) -> tuple[Shifted, Shifted]:
    """The images of the left and the right eye, each shifted by half the parallax.

    ``parallax`` is the shift between the eyes from infinity to the nearest depth, in percent of the width.
    What has the nearness ``screen`` does not move and appears in the plane of the screen: with 0 everything
    is in front of it, with 1 behind.
    """
    if view.image is None:
        raise ValueError(
            "Expected a view with an image to shift, got one without. Give an image to View from Depth "
            "Image, or decode both."
        )
    if not 0 <= screen <= 1:
        raise ValueError(
            f"Expected a screen from 0 (infinity) to 1 (the nearest depth), got {screen:g}. Correct it."
        )
    if not parallax >= 0:
        raise ValueError(
            f"Expected a parallax of at least 0 %, got {parallax:g}. To swap the eyes, swap the images."
        )
    nearest = _nearest(view.require_valid())
    known = view.mask if view.sky is None else view.mask | view.sky
    left, right = (
        Shifted(torch.empty_like(view.image), torch.empty_like(view.mask)) for _ in range(2)
    )
    pixels = parallax / 200 * view.depth.shape[-1]
    for top in range(0, view.depth.shape[1], BAND):
        rows = (slice(None), slice(top, top + BAND))
        half = (_nearness(view.depth[rows], view.mask[rows], nearest) - screen) * pixels
        joined = _joined(view, rows, edge_rtol)
        for eye, shift in ((left, half), (right, -half)):
            band = shift_picture(view.image[rows], shift, half, known[rows], joined)
            eye.image[rows], eye.holes[rows] = band.image, band.holes
    return left, right


def nearness(view: View) -> Tensor:
    """Nearest depth / depth (b, h, w), 0 where the depth is invalid or sky.

    The nearest is the 0.1st percentile, so 1 can be passed.
    """
    return _nearness(view.depth, view.mask, _nearest(view))


def _nearest(view: View) -> Tensor:
    """(b, 1, 1)."""
    return torch.stack(
        [percentile(d.masked_select(m), 0.1) for d, m in zip(view.depth, view.mask, strict=True)]
    ).reshape(-1, 1, 1)


def _nearness(depth: Tensor, mask: Tensor, nearest: Tensor) -> Tensor:
    near = nearest / depth.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(mask, near, torch.zeros_like(depth))


def shift_picture(image: Tensor, shift: Tensor, front: Tensor, known: Tensor, joined: Tensor) -> Shifted:
    """Move each pixel of (b, h, w, 3) right by ``shift`` pixels (b, h, w); where two meet, the one with more
    ``front`` is visible.

    Neighbors that are ``joined`` (b, h, w - 1) are one surface, stretched or squeezed without gaps; others
    are separated. Only ``known`` pixels are moved.
    """
    width = shift.shape[-1]
    place = torch.arange(width, device=shift.device) + shift
    none = torch.zeros_like(known[..., :1])
    # the last column has no right neighbor
    to_right, to_left = torch.cat([joined, none], -1), torch.cat([none, joined], -1)
    loose = known & ~(to_right & to_left)
    after = torch.cat([place[..., 1:], place[..., -1:]], -1)
    seen = torch.full_like(shift, -torch.inf)
    picture = torch.zeros_like(image)
    # a pixel without a neighbor on one side still covers its own width
    candidates = [((place + 0.5).floor(), torch.zeros_like(place), loose)]
    span = after - place
    longest = int(span.masked_fill(~to_right, 0).max().ceil())
    first = place.ceil()
    for step in range(longest + 1):
        target = first + step
        share = (target - place) / span.clamp_min(1e-6)
        candidates.append((target, share.clamp(0, 1), to_right & (target <= after)))
    for target, share, drawn in candidates:
        _draw(picture, seen, target, share, drawn & (target >= 0) & (target < width), image, front)
    return Shifted(picture, seen.isinf())


def _draw(
    picture: Tensor, seen: Tensor, target: Tensor, share: Tensor, drawn: Tensor, image: Tensor, front: Tensor
) -> None:
    """Draw colors between each pixel and its right neighbor into ``picture`` where they are in front of what
    is ``seen`` there.
    """
    source = drawn.reshape(-1).nonzero().squeeze(-1)
    if not len(source):
        return
    share, target = (values.reshape(-1).index_select(0, source) for values in (share, target))
    front, image, seen = front.reshape(-1), image.reshape(-1, 3), seen.view(-1)
    after = (source + 1).clamp_(max=drawn.numel() - 1)
    height = torch.lerp(front.index_select(0, source), front.index_select(0, after), share)
    goal = source - source % drawn.shape[-1] + target.long()
    nearest = seen.scatter_reduce(0, goal, height, "amax")
    winner = (height >= nearest.index_select(0, goal)) & (height > seen.index_select(0, goal))
    if not bool(winner.all()):
        kept = winner.nonzero().squeeze(-1)
        source, after, share, goal = (each.index_select(0, kept) for each in (source, after, share, goal))
    color = torch.lerp(image.index_select(0, source), image.index_select(0, after), share.unsqueeze(-1))
    picture.view(-1, 3)[goal] = color
    seen.copy_(nearest)


def _joined(view: View, rows: tuple, edge_rtol: float) -> Tensor:
    """True (b, h, w - 1) where a pixel and its right neighbor belong to one surface; sky joins sky."""
    depth, mask = view.depth[rows], view.mask[rows]
    left, right = depth[..., :-1], depth[..., 1:]
    near = torch.minimum(left, right)
    joined = mask[..., :-1] & mask[..., 1:] & ((left - right).abs() <= (edge_rtol or torch.inf) * near)
    if view.sky is None:
        return joined
    sky = view.sky[rows]
    return joined | (sky[..., :-1] & sky[..., 1:])
