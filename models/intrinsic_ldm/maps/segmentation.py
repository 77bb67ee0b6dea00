"""Segmentation as an RGB image and back: one color per mask, suited to an autoencoder and a diffusion model.

The palette is a grid of four levels per channel; black is no mask. The color of a mask is a hash of its
centroid, so that an object at the same position has the same color in every image; on a collision the later
mask takes the next free color.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)
COLORS = len(LEVELS) ** 3 - 1  # without black
UNSURE = -1
REACH = 8  # pixels by which a cluster grows into the blurred border around it
GRID = 16  # cells per side of the grid to which centroids are rounded: the default, and the most


def palette(device=None) -> Tensor:
    """(64, 3) in [0, 1]; row 0 is black, the background."""
    levels = torch.tensor(LEVELS, device=device)
    return torch.cartesian_prod(levels, levels, levels)


def encode_segments(ids: Tensor, *, grid: int = GRID) -> tuple[Tensor, list[int]]:
    """Mask ids (b, h, w), 0 = none, to colors (b, h, w, 3); per image, how many masks got no color.

    The largest 63 masks get a color; the others become background. The centroids are rounded to a grid of
    `grid` cells per side: many cells distinguish crowded masks, few are what a small network can learn.
    """
    if not 1 <= grid <= GRID:
        raise ValueError(
            f"Expected 1 to {GRID} grid cells per side for the colors of masks, got {grid}. Choose another "
            "number."
        )
    indices, left_out = torch.zeros_like(ids, dtype=torch.long), []
    for image, out in zip(ids, indices):
        numbers, which, counts = image.unique(return_inverse=True, return_counts=True)
        masks = [
            index for index in counts.argsort(descending=True, stable=True).tolist() if numbers[index] > 0
        ]
        left_out.append(max(0, len(masks) - COLORS))
        centroids = find_centroids(which, counts).tolist()
        color_by_mask = assign_colors({index: tuple(centroids[index]) for index in masks[:COLORS]}, grid)
        colors = [color_by_mask.get(index, 0) for index in range(len(numbers))]
        out.copy_(torch.tensor(colors, device=ids.device)[which])
    return palette(ids.device)[indices], left_out


def find_centroids(which: Tensor, counts: Tensor) -> Tensor:
    """Centroids (n, 2), row and column in [0, 1), of regions 0 to n - 1 in (h, w), areas `counts` (n,)."""
    height, width = which.shape
    rows = torch.arange(height, dtype=torch.float64, device=which.device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float64, device=which.device).expand(height, width)
    # sums of integers are exact, so a centroid on a cell border is always assigned to the same cell
    sums = [
        torch.bincount(which.flatten(), weights=positions.flatten(), minlength=len(counts))
        for positions in (rows, columns)
    ]
    return torch.stack(sums, dim=1) / counts[:, None] / counts.new_tensor([height, width])


def assign_colors(centroids: Mapping[int, tuple[float, float]], grid: int = GRID) -> dict[int, int]:
    """{mask: color} from each centroid (row, column), assigned from the top left to the bottom right."""
    colors: dict[int, int] = {}
    for mask, (y, x) in sorted(centroids.items(), key=lambda item: (item[1], item[0])):
        cell = int(y * grid) * grid + int(x * grid)
        # 37 and 63 are coprime: neighboring cells get distant colors
        color = cell * 37 % COLORS + 1
        while color in colors.values():
            color = color % COLORS + 1
        colors[mask] = color
    return colors


def decode_segments(colors: Tensor, *, smallest: float = 0.001) -> tuple[Tensor, list[list[int]]]:
    """Colors (b, h, w, 3) near those of `encode_segments` to ids (b, h, w), 0 = none, and the ids per image.

    An id is the number of a palette color, so it is the same in every image. Each pixel is assigned to the
    nearest color. Colors that cover less than `smallest` of an image, as along blurred borders or in specks,
    are removed; their pixels go to the neighboring cluster with the nearest color, or to the background if
    they are farther than REACH from any.
    """
    ids = nearest_colors(colors)
    highest, lowest = (sign * F.max_pool2d(sign * ids[:, None].float(), 3, 1, 1)[:, 0] for sign in (1, -1))
    filled = highest == lowest  # a pixel equal to all its neighbors: a border is too thin to have one
    for image, inner, image_colors in zip(ids, filled, colors):
        kept = torch.bincount(image[inner], minlength=COLORS + 1) >= smallest * image.numel()
        kept[0] = True
        image.copy_(grow_clusters(torch.where(kept[image], image, UNSURE), image_colors))
    return ids, [[number for number in image.unique().tolist() if number] for image in ids]


def nearest_colors(colors: Tensor) -> Tensor:
    """Palette index (...) of the color nearest to each of (..., 3); non-finite colors become black."""
    red, green, blue = (colors.nan_to_num(0, 0, 0).clamp(0, 1) * (len(LEVELS) - 1)).round().long().unbind(-1)
    return (red * len(LEVELS) + green) * len(LEVELS) + blue


def grow_clusters(ids: Tensor, colors: Tensor) -> Tensor:
    """Ids (h, w) whose UNSURE pixels take the neighboring id with the color nearest to theirs (h, w, 3)."""
    table = palette(colors.device).to(colors.dtype)
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
        distance = (table[around.clamp(min=0)] - colors[unsure]).square().sum(-1)  # (9, n)
        nearest = distance.masked_fill(around == UNSURE, torch.inf).argmin(dim=0, keepdim=True)
        ids = ids.masked_scatter(unsure, around.gather(0, nearest))
    return torch.where(ids == UNSURE, 0, ids)


def masks_to_ids(masks: Tensor) -> Tensor:
    """Masks (n, h, w) of one image, inside above 0.5, to ids (h, w) from 1; smaller masks lie on top."""
    inside = masks > 0.5
    ids = torch.zeros(masks.shape[-2:], dtype=torch.long, device=masks.device)
    for index in inside.sum(dim=(1, 2)).argsort(descending=True, stable=True).tolist():
        ids[inside[index]] = index + 1
    return ids


def ids_to_masks(ids: Tensor, numbers: list[int]) -> Tensor:
    """A mask (n, h, w) of 0 and 1 per id in (h, w); one black mask if there are none."""
    return torch.stack([ids == number for number in numbers or [-1]]).float()
