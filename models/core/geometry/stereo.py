"""Stereo views: forward warping of an image by its depth, row by row, with masks of the disocclusions.

Nearness is nearest depth / depth: 1 at the nearest depth, 0 at infinity. It needs no unit and no camera, and
is defined for sky.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .view import View, percentile


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
    half = (nearness(view.require_valid()) - screen) * (parallax / 200 * view.depth.shape[-1])
    known = view.mask if view.sky is None else view.mask | view.sky
    return tuple(
        shift_picture(view.image.float(), shift, half, known, _joined(view, edge_rtol))
        for shift in (half, -half)
    )


def nearness(view: View) -> Tensor:
    """Nearest depth / depth (b, h, w), 0 where the depth is invalid or sky.

    The nearest is the 0.1st percentile, so 1 can be passed.
    """
    nearest = torch.stack(
        [percentile(d[m], 0.1) for d, m in zip(view.depth, view.mask, strict=True)]
    ).reshape(-1, 1, 1)
    return torch.where(
        view.mask,
        nearest / view.depth.clamp_min(torch.finfo(torch.float32).tiny),
        torch.zeros_like(view.depth),
    )


def shift_picture(image: Tensor, shift: Tensor, front: Tensor, known: Tensor, joined: Tensor) -> Shifted:
    """Move each pixel of (b, h, w, 3) right by ``shift`` pixels (b, h, w); where two meet, the one with more
    ``front`` is visible.

    Neighbors that are ``joined`` (b, h, w - 1) are one surface, stretched or squeezed without gaps; others
    are separated. Only ``known`` pixels are moved.
    """
    batch, height, width = shift.shape
    column = torch.arange(width, device=shift.device)
    place = column + shift
    none = torch.zeros_like(joined[..., :1])
    loose = known & ~(torch.cat([joined, none], -1) & torch.cat([none, joined], -1))
    candidates = [_single_pixels(place, loose)]
    span = place.diff(dim=-1)
    longest = int(span[joined].max().ceil()) if bool(joined.any()) else 0
    first = place[..., :-1].ceil()
    for step in range(longest + 1):
        target = first + step
        share = (target - place[..., :-1]) / span.clamp_min(1e-6)
        candidates.append((target, share.clamp(0, 1), joined & (target <= place[..., 1:])))
    seen = torch.full((batch, height, width), -torch.inf, device=shift.device)
    picture = torch.zeros_like(image)
    for target, share, drawn in candidates:
        _draw(picture, seen, target, share, drawn & (target >= 0) & (target < width), image, front)
    return Shifted(picture, seen.isinf())


def _single_pixels(place: Tensor, loose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A pixel without a neighbor on one side still covers its own width."""
    return (place + 0.5).floor(), torch.zeros_like(place), loose


def _draw(
    picture: Tensor, seen: Tensor, target: Tensor, share: Tensor, drawn: Tensor, image: Tensor, front: Tensor
) -> None:
    """Draw colors between each pixel and its right neighbor into ``picture`` where they are in front of what
    is ``seen`` there.
    """
    b, y, x = drawn.nonzero(as_tuple=True)
    after = (x + 1).clamp(max=front.shape[-1] - 1)
    share, target = share[b, y, x], target[b, y, x].long()
    height = torch.lerp(front[b, y, x], front[b, y, after], share)
    flat = (b * front.shape[1] + y) * front.shape[2] + target
    nearest = seen.view(-1).scatter_reduce(0, flat, height, "amax")
    winner = (height >= nearest[flat]) & (height > seen.view(-1)[flat])
    color = torch.lerp(image[b, y, x], image[b, y, after], share.unsqueeze(-1))
    picture.view(-1, 3)[flat[winner]] = color[winner]
    seen.copy_(nearest.view_as(seen))


def _joined(view: View, edge_rtol: float) -> Tensor:
    """True (b, h, w - 1) where a pixel and its right neighbor belong to one surface; sky joins sky."""
    left, right = view.depth[..., :-1], view.depth[..., 1:]
    near = torch.minimum(left, right)
    joined = (
        view.mask[..., :-1] & view.mask[..., 1:] & ((left - right).abs() <= (edge_rtol or torch.inf) * near)
    )
    return joined if view.sky is None else joined | (view.sky[..., :-1] & view.sky[..., 1:])
