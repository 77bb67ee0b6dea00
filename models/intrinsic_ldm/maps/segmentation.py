"""Segmentation as a picture and back: one colour for each mask, which an autoencoder can carry and a sampler can make.

The colours are those of a grid of four levels a channel, black being no mask. A mask's colour follows from where its centre lies, so the
same thing in the same place gets the same colour in every picture; where two would share one, the later takes the next that is free.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)
COLOURS = len(LEVELS) ** 3 - 1  # without black
UNSURE = -1
REACH = 8  # pixels that a cluster spreads over the blurred border around it
PLACES = 16  # a centre's place is told to a sixteenth of the picture's sides, unless the caller knows better


def palette(device=None) -> Tensor:
    """(64, 3) in [0, 1]; row 0 is black, the background."""
    levels = torch.tensor(LEVELS, device=device)
    return torch.cartesian_prod(levels, levels, levels)


def encode_segments(ids: Tensor, *, places: int = PLACES) -> tuple[Tensor, list[int]]:
    """Masks numbered in (b, h, w), 0 being none, to colours (b, h, w, 3), and how many masks of each picture found no colour.

    The largest 63 masks get one; those that are left out are background. `places` to a side decide how far a mask moves before its
    colour changes: many tell crowded masks apart, few are what a small network can learn.
    """
    if not 1 <= places <= PLACES:
        raise ValueError(
            f"{places} places along a side arrived for the colours of masks; give 1 to {PLACES}."
        )
    coloured, left_out = torch.zeros_like(ids, dtype=torch.long), []
    for picture, out in zip(ids, coloured):
        numbers, which, counts = picture.unique(return_inverse=True, return_counts=True)
        masks = [
            index for index in counts.argsort(descending=True, stable=True).tolist() if numbers[index] > 0
        ]
        left_out.append(max(0, len(masks) - COLOURS))
        centres = find_centres(which, counts).tolist()
        taken = assign_colours({index: tuple(centres[index]) for index in masks[:COLOURS]}, places)
        colour_of = torch.tensor([taken.get(index, 0) for index in range(len(numbers))], device=ids.device)
        out.copy_(colour_of[which])
    return palette(ids.device)[coloured], left_out


def find_centres(which: Tensor, counts: Tensor) -> Tensor:
    """The centres (n, 2), row and column in [0, 1), of the n regions that (h, w) numbers from 0, of `counts` (n,) pixels each."""
    height, width = which.shape
    rows = torch.arange(height, dtype=torch.float64, device=which.device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float64, device=which.device).expand(height, width)
    # sums of whole numbers are exact, so a centre that lies on the border of two places is always counted to the same
    sums = [
        torch.bincount(which.flatten(), weights=place.flatten(), minlength=len(counts))
        for place in (rows, columns)
    ]
    return torch.stack(sums, dim=1) / counts[:, None] / counts.new_tensor([height, width])


def assign_colours(centres: Mapping[int, tuple[float, float]], places: int = PLACES) -> dict[int, int]:
    """A colour for each mask, {mask: colour}, from its centre's row and column; served from the top left to the bottom right."""
    colours: dict[int, int] = {}
    for mask, (y, x) in sorted(centres.items(), key=lambda item: (item[1], item[0])):
        place = int(y * places) * places + int(x * places)
        colour = (
            place * 37 % COLOURS + 1
        )  # 37 shares no factor with 63: neighbours in place are far apart in colour
        while colour in colours.values():
            colour = colour % COLOURS + 1
        colours[mask] = colour
    return colours


def decode_segments(colours: Tensor, *, smallest: float = 0.001) -> tuple[Tensor, list[list[int]]]:
    """Colours (b, h, w, 3) near those of `encode_segments` to ids (b, h, w), 0 being none, and the ids that each picture has.

    An id is a colour's number, so it stays the same from picture to picture. The colours of the grid are the clusters: a pixel belongs to
    the nearest. Colours that fill less than `smallest` of a picture, as those do that stand along blurred borders or in specks, are none;
    their pixels go to the neighbouring cluster whose colour is nearest, or, farther than REACH from any, to the background.
    """
    ids = nearest_colours(colours)
    highest, lowest = (sign * F.max_pool2d(sign * ids[:, None].float(), 3, 1, 1)[:, 0] for sign in (1, -1))
    filled = highest == lowest  # a pixel like all its neighbours: a border is too thin to have one
    for picture, inner, shown in zip(ids, filled, colours):
        kept = torch.bincount(picture[inner], minlength=COLOURS + 1) >= smallest * picture.numel()
        kept[0] = True
        picture.copy_(spread_clusters(torch.where(kept[picture], picture, UNSURE), shown))
    return ids, [[number for number in picture.unique().tolist() if number] for picture in ids]


def nearest_colours(colours: Tensor) -> Tensor:
    """The number (...) of the grid's colour nearest to each of (..., 3); a colour that is no number is black."""
    red, green, blue = (colours.nan_to_num(0, 0, 0).clamp(0, 1) * (len(LEVELS) - 1)).round().long().unbind(-1)
    return (red * len(LEVELS) + green) * len(LEVELS) + blue


def spread_clusters(ids: Tensor, colours: Tensor) -> Tensor:
    """Ids (h, w) whose UNSURE pixels take that of the neighbours' ids whose colour is nearest to their own (h, w, 3)."""
    table = palette(colours.device).to(colours.dtype)
    for _ in range(REACH):
        unsure = ids == UNSURE
        if not bool(unsure.any()):
            break
        padded = F.pad(ids, (1, 1, 1, 1), value=UNSURE)
        around = torch.stack(
            [
                window[unsure]
                for row in padded.unfold(0, 3, 1).unfold(1, 3, 1).unbind(2)
                for window in row.unbind(2)
            ]
        )
        distance = (table[around.clamp(min=0)] - colours[unsure]).square().sum(-1)  # 9 n
        nearest = distance.masked_fill(around == UNSURE, torch.inf).argmin(dim=0, keepdim=True)
        ids = ids.masked_scatter(unsure, around.gather(0, nearest))
    return torch.where(ids == UNSURE, 0, ids)


def masks_to_ids(masks: Tensor) -> Tensor:
    """Masks (n, h, w) of one picture, above a half being inside, to (h, w) numbered from 1; where they overlap the smaller is seen."""
    inside = masks > 0.5
    ids = torch.zeros(masks.shape[-2:], dtype=torch.long, device=masks.device)
    for index in inside.sum(dim=(1, 2)).argsort(descending=True, stable=True).tolist():
        ids[inside[index]] = index + 1
    return ids


def ids_to_masks(ids: Tensor, numbers: list[int]) -> Tensor:
    """A mask (n, h, w) of 0 and 1 for each number in (h, w); one black mask if there are none."""
    return torch.stack([ids == number for number in numbers or [-1]]).float()
