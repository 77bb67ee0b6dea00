"""The scorer's network: object and floor classes of each 4 x 4 cell of an image. A small U-Net; no time, no
text.

Letters: b images, c channels; `h w` are the cells, a quarter of the image's height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..scene import COLORS, SHAPES, SIZES

STRIDE = 4  # pixels per cell
WIDTHS = (24, 40, 48, 56)  # channels at 1/2, 1/4, 1/8 and 1/16 of the image
OFFSET_CELLS = 8.0  # one unit of `offset`, in cells
MEAN_LOG_DEPTH = 1.6  # objects are some 5 m away
FLOORS = ("wooden", "checkered", "tiled", "plain", "grass", "sand", "paved")
# Output channels of every cell. Class 0 of shape and color is "no object"; the others follow the order in
# scene.py.
HEADS = {"shape": 1 + len(SHAPES), "color": 1 + len(COLORS), "size": len(SIZES), "offset": 2, "log_depth": 1}


class ScorerNetwork(nn.Module):
    """`forward`: image (b, 3, 4 h, 4 w) in [0, 1] -> logits and values (b, c, h, w) by the names of HEADS,
    and `floor` (b, 7).

    `offset` points from a cell to the projected center of its object (x right, y down), `log_depth` is the
    natural logarithm of that center's depth in metres. Height and width are multiples of 16.
    """

    def __init__(self, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        half, quarter, eighth, sixteenth = WIDTHS
        self.stem = convolve(3, half, 2, operations, factory)
        self.enter = convolve(half, quarter, 2, operations, factory)
        self.fine = Residual(quarter, operations, factory)
        self.down = convolve(quarter, eighth, 2, operations, factory)
        self.middle = Residual(eighth, operations, factory)
        self.down_again = convolve(eighth, sixteenth, 2, operations, factory)
        self.coarse = Residual(sixteenth, operations, factory)
        self.up = operations.Conv2d(sixteenth, eighth, 1, **factory)
        self.merge_middle = convolve(eighth, eighth, 1, operations, factory)
        self.up_again = operations.Conv2d(eighth, quarter, 1, **factory)
        self.merge_fine = convolve(quarter, quarter, 1, operations, factory)
        self.heads = operations.Conv2d(quarter, sum(HEADS.values()), 1, **factory)
        self.floor = operations.Linear(sixteenth, len(FLOORS), **factory)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        fine = self.fine(self.enter(self.stem(image * 4 - 2)))
        middle = self.middle(self.down(fine))
        coarse = self.coarse(self.down_again(middle))
        middle = self.merge_middle(middle + double(self.up(coarse)))
        fine = self.merge_fine(fine + double(self.up_again(middle)))
        parts = self.heads(fine).split(list(HEADS.values()), 1)
        return {**dict(zip(HEADS, parts, strict=True)), "floor": self.floor(coarse.mean((2, 3)))}


class Residual(nn.Module):
    """x (b, c, h, w) plus two convolution blocks of it."""

    def __init__(self, width: int, operations, factory: dict):
        super().__init__()
        self.first = convolve(width, width, 1, operations, factory)
        self.second = convolve(width, width, 1, operations, factory)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def convolve(inside: int, outside: int, stride: int, operations, factory: dict) -> nn.Sequential:
    """3 x 3 convolution, GroupNorm(4), SiLU."""
    norm = operations.GroupNorm(4, outside, **factory)
    return nn.Sequential(
        operations.Conv2d(inside, outside, 3, stride, 1, bias=False, **factory), norm, nn.SiLU()
    )


def double(x: Tensor) -> Tensor:
    """Nearest upsampling 2x."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
