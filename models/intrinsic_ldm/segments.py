"""Segmentation as a picture and back: one colour for each mask, which an autoencoder can carry and a sampler can make.

The colours are those of a grid of four levels a channel, black being no mask. A mask's colour follows from where its centre lies, so the
same thing in the same place gets the same colour in every picture; where two would share one, the later takes the next that is free.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)
COLOURS = len(LEVELS) ** 3 - 1  # without black
UNSURE = -1
REACH = 8  # pixels that a cluster spreads over the blurred border around it
PLACES = 16  # a centre's place is told to a sixteenth of the picture's sides


def palette(device=None) -> Tensor:
    """(64, 3) in [0, 1]; row 0 is black, the background."""
    levels = torch.tensor(LEVELS, device=device)
    return torch.cartesian_prod(levels, levels, levels)


def encode_segments(ids: Tensor) -> tuple[Tensor, list[int]]:
    """Masks numbered in (b, h, w), 0 being none, to colours (b, h, w, 3), and how many masks of each picture found no colour.

    The largest 63 masks get one; those that are left out are background.
    """
    colours, left_out = torch.zeros(*ids.shape, 3, device=ids.device), []
    table = palette(ids.device)
    for picture, out in zip(ids, colours):
        numbers, counts = picture[picture > 0].unique(return_counts=True)
        largest = numbers[counts.argsort(descending=True, stable=True)][:COLOURS]
        left_out.append(len(numbers) - len(largest))
        for colour, number in assign_colours(picture, sorted(largest.tolist())).items():
            out[picture == number] = table[colour]
    return colours, left_out


def assign_colours(picture: Tensor, numbers: list[int]) -> dict[int, int]:
    """Colour by mask number turned round: {colour: number}; masks are served from the top left to the bottom right."""
    height, width = picture.shape
    centres = {}
    for number in numbers:
        rows, columns = (picture == number).nonzero(as_tuple=True)
        centres[number] = (float(rows.float().mean()) / height, float(columns.float().mean()) / width)
    taken: dict[int, int] = {}
    for number, (y, x) in sorted(centres.items(), key=lambda item: (item[1], item[0])):
        place = int(y * PLACES) * PLACES + int(x * PLACES)
        colour = place * 37 % COLOURS + 1  # 37 shares no factor with 63: neighbours in place are far apart in colour
        while colour in taken:
            colour = colour % COLOURS + 1
        taken[colour] = number
    return taken


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
        around = torch.stack([window[unsure] for row in padded.unfold(0, 3, 1).unfold(1, 3, 1).unbind(2) for window in row.unbind(2)])
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
