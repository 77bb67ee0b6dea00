"""The scorer's network: a picture in, what each of its 4 x 4 cells shows out. A small U of convolutions; no time, no text.

Letters: b pictures, c channels; `h w` are the cells, a quarter of the picture's height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..scene import COLORS, SHAPES, SIZES

STRIDE = 4  # pixels a cell
WIDTHS = (24, 40, 48, 56)  # channels at 1/2, 1/4, 1/8 and 1/16 of the picture
OFFSET_CELLS = 8.0  # one unit of `offset`, in cells
MEAN_LOG_DEPTH = 1.6  # objects stand some 5 m away
FLOORS = ("wooden", "checkered", "tiled", "plain", "grass", "sand", "paved")
# Output channels of every cell. Class 0 of shape and color is "no object"; the others follow the order in scene.py.
HEADS = {"shape": 1 + len(SHAPES), "color": 1 + len(COLORS), "size": len(SIZES), "offset": 2, "log_depth": 1}


class ScorerNetwork(nn.Module):
    """`forward`: image b 3 4h 4w in [0, 1] -> logits and values b c h w by the names of HEADS, and `floor` b 7.

    `offset` points from a cell to the projected centre of its object (x right, y down), `log_depth` is the natural logarithm
    of that centre's depth in metres. Height and width are multiples of 16.
    """

    def __init__(self, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        place = {"device": device, "dtype": dtype}
        half, quarter, eighth, sixteenth = WIDTHS
        self.stem = convolve(3, half, 2, operations, place)
        self.enter = convolve(half, quarter, 2, operations, place)
        self.fine = Residual(quarter, operations, place)
        self.down = convolve(quarter, eighth, 2, operations, place)
        self.middle = Residual(eighth, operations, place)
        self.down_again = convolve(eighth, sixteenth, 2, operations, place)
        self.coarse = Residual(sixteenth, operations, place)
        self.up = operations.Conv2d(sixteenth, eighth, 1, **place)
        self.merge_middle = convolve(eighth, eighth, 1, operations, place)
        self.up_again = operations.Conv2d(eighth, quarter, 1, **place)
        self.merge_fine = convolve(quarter, quarter, 1, operations, place)
        self.heads = operations.Conv2d(quarter, sum(HEADS.values()), 1, **place)
        self.floor = operations.Linear(sixteenth, len(FLOORS), **place)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        fine = self.fine(self.enter(self.stem(image * 4 - 2)))
        middle = self.middle(self.down(fine))
        coarse = self.coarse(self.down_again(middle))
        middle = self.merge_middle(middle + double(self.up(coarse)))
        fine = self.merge_fine(fine + double(self.up_again(middle)))
        parts = self.heads(fine).split(list(HEADS.values()), 1)
        return {**dict(zip(HEADS, parts, strict=True)), "floor": self.floor(coarse.mean((2, 3)))}


class Residual(nn.Module):
    """x b c h w plus two convolutions of it."""

    def __init__(self, width: int, operations, place: dict):
        super().__init__()
        self.first = convolve(width, width, 1, operations, place)
        self.second = convolve(width, width, 1, operations, place)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def convolve(inside: int, outside: int, stride: int, operations, place: dict) -> nn.Sequential:
    """A 3 x 3 convolution, normalised in four groups of channels and bent."""
    norm = operations.GroupNorm(4, outside, **place)
    return nn.Sequential(operations.Conv2d(inside, outside, 3, stride, 1, bias=False, **place), norm, nn.SiLU())


def double(x: Tensor) -> Tensor:
    """Every pixel as two by two."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
