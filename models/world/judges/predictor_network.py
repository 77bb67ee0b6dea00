"""The predictor's network: depth, normals, class and line of each pixel. The scorer's U-Net, at full
resolution.

Letters: b images, c channels, `h w` pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..scene import COLORS
from .scorer_network import Residual, convolve, double

ALIGN = 16  # the network downsamples four times by 2
WIDTHS = (16, 24, 32, 48, 56)  # channels at the image's size, then at 1/2, 1/4, 1/8 and 1/16 of it
SURROUNDINGS, SKY, FIRST_COLOR = 0, 1, 2  # of `kind`; the solids' colors follow, in the order in scene.py
HEADS = {"log_depth": 1, "normals": 3, "kind": FIRST_COLOR + len(COLORS), "line": 1}


class PredictorNetwork(nn.Module):
    """`forward`: image (b, 3, h, w) in [0, 1] -> values and logits (b, c, h, w) by the names of HEADS.

    Height and width are multiples of 16.

    `log_depth` is the natural logarithm of z-depth in metres less the scorer's MEAN_LOG_DEPTH; `normals` are
    in the camera frame, not normalized; `kind` are the logits of surroundings, sky and the solids' colors;
    `line` is the logit of a line.
    """

    def __init__(self, *, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.stem = convolve(3, WIDTHS[0], 1, operations, factory)
        pairs = list(zip(WIDTHS, WIDTHS[1:]))
        self.down = nn.ModuleList(convolve(wide, narrow, 2, operations, factory) for wide, narrow in pairs)
        self.refine = nn.ModuleList(
            [nn.Identity(), *(Residual(width, operations, factory) for width in WIDTHS[2:])]
        )
        self.up = nn.ModuleList(operations.Conv2d(narrow, wide, 1, **factory) for wide, narrow in pairs)
        self.merge = nn.ModuleList(convolve(wide, wide, 1, operations, factory) for wide, _ in pairs)
        self.heads = operations.Conv2d(WIDTHS[0], sum(HEADS.values()), 1, **factory)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x, finer = self.stem(image * 4 - 2), []
        for down, refine in zip(self.down, self.refine, strict=True):
            finer.append(x)
            x = refine(down(x))
        for skipped, up, merge in reversed(list(zip(finer, self.up, self.merge, strict=True))):
            x = merge(skipped + double(up(x)))
        return dict(zip(HEADS, self.heads(x).split(list(HEADS.values()), 1), strict=True))
