"""The DPT head: four layers of patch tokens to a map at the image's resolution, under VGGT's released names.

Letters: b images, n tokens, c channels; `h w` only beside c.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

POSITION_RATIO = 0.1  # factor on the sin-cos position map
POSITION_BASE = 100.0
HIDDEN = 32  # channels of the last hidden layer, at the image's resolution


class DPTHead(nn.Module):
    """Patch tokens of four layers -> (b, outputs, h, w). One LayerNorm serves all four."""

    def __init__(
        self,
        dim: int,
        *,
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        outputs: int = 2,
        operations=torch.nn,
        device=None,
        dtype=None,
    ):
        super().__init__()
        made = {"operations": operations, "device": device, "dtype": dtype}
        factory = {"device": device, "dtype": dtype}
        first, second, _, last = out_channels
        self.norm = operations.LayerNorm(dim, eps=1e-5, **factory)
        self.projects = nn.ModuleList(operations.Conv2d(dim, width, 1, **factory) for width in out_channels)
        self.resize_layers = nn.ModuleList(
            [
                operations.ConvTranspose2d(first, first, 4, stride=4, **factory),
                operations.ConvTranspose2d(second, second, 2, stride=2, **factory),
                nn.Identity(),
                operations.Conv2d(last, last, 3, stride=2, padding=1, **factory),
            ]
        )
        self.scratch = Scratch(features, out_channels, outputs, **made)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """layers: four of (b, n, c), patch tokens row-major on `grid`; size (h, w) of the image in pixels."""
        ratio, scratch, maps = size[1] / size[0], self.scratch, []
        for i, (tokens, project, resize) in enumerate(
            zip(layers, self.projects, self.resize_layers, strict=True), start=1
        ):
            x = rearrange(self.norm(tokens), "b (h w) c -> b c h w", h=grid[0])
            x = resize(add_positions(project(x), ratio))
            maps.append(getattr(scratch, f"layer{i}_rn")(x))

        # from the coarsest map to the finest, each result resized to the next map's size
        x = None
        for i in (4, 3, 2, 1):
            larger = maps[i - 2].shape[-2:] if i > 1 else None
            x = getattr(scratch, f"refinenet{i}")(maps[i - 1], x, larger)

        x = add_positions(resize_bilinear(scratch.output_conv1(x), size), ratio)
        return scratch.output_conv2(x)


class Scratch(nn.Module):
    """The convolutions behind the four maps; a module of its own for the released names alone."""

    def __init__(
        self, features: int, out_channels: Sequence[int], outputs: int, *, operations, device, dtype
    ):
        super().__init__()
        made = {"operations": operations, "device": device, "dtype": dtype}
        factory = {"device": device, "dtype": dtype}
        for i, width in enumerate(out_channels, start=1):
            conv = operations.Conv2d(width, features, 3, padding=1, bias=False, **factory)
            self.add_module(f"layer{i}_rn", conv)
            self.add_module(f"refinenet{i}", FusionBlock(features, merges=i < len(out_channels), **made))
        self.output_conv1 = operations.Conv2d(features, features // 2, 3, padding=1, **factory)
        self.output_conv2 = nn.Sequential(
            operations.Conv2d(features // 2, HIDDEN, 3, padding=1, **factory),
            nn.ReLU(),
            operations.Conv2d(HIDDEN, outputs, 1, **factory),
        )


class FusionBlock(nn.Module):
    """Add a finer map to the coarser result, refine, resize. The coarsest block has nothing to merge with."""

    def __init__(self, features: int, *, merges: bool, operations, device, dtype):
        super().__init__()
        made = {"operations": operations, "device": device, "dtype": dtype}
        if merges:
            self.resConfUnit1 = ResidualConvUnit(features, **made)
        self.resConfUnit2 = ResidualConvUnit(features, **made)
        self.out_conv = operations.Conv2d(features, features, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor, coarser: Tensor | None, size: Sequence[int] | None) -> Tensor:
        """`size` (h, w) of the result; None doubles."""
        if coarser is not None:
            x = coarser + self.resConfUnit1(x)
        x = self.resConfUnit2(x)
        return self.out_conv(resize_bilinear(x, size or [2 * side for side in x.shape[-2:]]))


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions with a skip connection that carries ReLU(x), not x.

    The published ReLU works in place on the input, so the released weights were trained with this skip.
    """

    def __init__(self, features: int, *, operations, device, dtype):
        super().__init__()
        self.conv1 = operations.Conv2d(features, features, 3, padding=1, device=device, dtype=dtype)
        self.conv2 = operations.Conv2d(features, features, 3, padding=1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


def resize_bilinear(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def add_positions(x: Tensor, ratio: float) -> Tensor:
    """x (b, c, h, w) with 0.1 of the sin-cos position map of an image of that width / height.

    The first half of the channels is a function of the column, the second of the row.
    """
    channels, height, width = x.shape[1:]
    columns, rows = aspect_axes(height, width, ratio)
    of_column = rearrange(axis_waves(columns, channels // 2).to(x), "w c -> c 1 w")
    of_row = rearrange(axis_waves(rows, channels // 2).to(x), "h c -> c h 1")
    first, second = x.chunk(2, dim=1)
    return torch.cat((first + POSITION_RATIO * of_column, second + POSITION_RATIO * of_row), dim=1)


def aspect_axes(height: int, width: int, ratio: float) -> tuple[Tensor, Tensor]:
    """x of the columns (w,), y of the rows (h,): an image of that width / height has a half diagonal of 1."""
    diagonal = (1 + ratio**2) ** 0.5
    span_x, span_y = ratio / diagonal * (width - 1) / width, 1 / diagonal * (height - 1) / height
    return torch.linspace(-span_x, span_x, width), torch.linspace(-span_y, span_y, height)


def axis_waves(positions: Tensor, channels: int) -> Tensor:
    """Positions (n,) -> (n, c): sines, then cosines, of falling frequencies."""
    count = channels // 2
    frequency = POSITION_BASE ** -(torch.arange(count, dtype=torch.float64) / count)
    angle = positions.double()[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1).float()
