"""Segmentation as a picture and back: one colour for each mask, which an autoencoder can carry and a sampler can make.

The colours are those of a grid of four levels a channel, black being no mask. A mask's colour follows from where its centre lies, so the
same thing in the same place gets the same colour in every picture; where two would share one, the later takes the next that is free.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)
COLOURS = len(LEVELS) ** 3 - 1  # without black
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

    An id is a colour's number, so it stays the same from picture to picture. Colours on less than `smallest` of a picture, as they appear
    along blurred borders, are background.
    """
    table = palette(colours.device).to(colours.dtype)
    ids = torch.cdist(colours.flatten(1, 2), table.expand(len(colours), -1, -1)).argmin(dim=2).view(colours.shape[:3])
    present = []
    for picture in ids:
        numbers, counts = picture.unique(return_counts=True)
        small = numbers[counts < smallest * picture.numel()]
        picture[torch.isin(picture, small)] = 0
        present.append([number for number in picture.unique().tolist() if number])
    return ids, present
