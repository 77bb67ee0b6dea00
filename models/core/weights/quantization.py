"""Quantized weight matrices in the formats that ComfyUI's loader reads: their tensors and values.

A matrix is quantized in blocks of whole rows, so that it never has to be in memory at once: first
`largest_magnitude` over all blocks if the format needs it, then `quantize` block by block, in order. Every
block but the last has a multiple of `ROWS` rows. The tensors that replace `layer.weight` are named by suffix:
`weight`, `weight_scale` and, for nvfp4, `weight_scale_2`.

Formats, from ComfyUI's QUANTIZATION.md and comfy/ops.py: float8_e4m3fn with one scale per matrix;
int8_tensorwise with one scale per row, the columns first rotated by ConvRot's Hadamard matrix, which spreads
outliers over a group; nvfp4, 4-bit floats with a float8 scale for each 16 and one scale per matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, ...]
# suffix -> what is written for a whole matrix; a shape () is one for all blocks
Stored = dict[str, tuple[torch.dtype, Shape]]

ROWS = 128  # nvfp4's scales are stored in tiles of this many rows
FP8_MAX, FP4_MAX, INT8_MAX = 448.0, 6.0, 127.0
FP4_GROUP = 16  # columns that share a scale
# group sizes of the Hadamard matrix, the first that divides the columns; core's default is 256
ROTATIONS = (256, 64, 16)


@dataclass(frozen=True)
class Format:
    """How one format stores a matrix (rows, columns)."""

    needs_largest: bool  # whether `quantize` uses the largest magnitude of the whole matrix
    fits: Callable[[Shape], bool]
    stored: Callable[[Shape], Stored]
    describe: Callable[[Shape], dict]  # core's description of the layer
    # (float32 block, largest magnitude) -> suffix: its tensor
    quantize: Callable[[Tensor, float], dict[str, Tensor]]


def largest_magnitude(block: Tensor) -> float:
    """Of a block; ValueError if a value is not finite."""
    largest = float(block.abs().amax()) if block.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError("it holds NaN or infinity")
    return largest


def quantize_fp8(block: Tensor, largest: float) -> dict[str, Tensor]:
    scale = torch.tensor(largest / FP8_MAX or 1.0)
    return {
        "weight": (block / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn),
        "weight_scale": scale,
    }


def quantize_int8(block: Tensor, largest: float) -> dict[str, Tensor]:
    size = rotation_size(block.shape[1])
    if size:
        block = (block.unflatten(1, (-1, size)) @ hadamard(size)).flatten(1)
    scale = (block.abs().amax(1, keepdim=True) / INT8_MAX).clamp(min=1e-30)
    return {"weight": (block / scale).round_().to(torch.int8), "weight_scale": scale}


def quantize_nvfp4(block: Tensor, largest: float) -> dict[str, Tensor]:
    scale = torch.tensor(largest / (FP8_MAX * FP4_MAX) or 1.0)
    groups = block.unflatten(1, (-1, FP4_GROUP))
    group_scale = (groups.abs().amax(-1) / FP4_MAX / scale).clamp_(max=FP8_MAX).to(torch.float8_e4m3fn)
    whole_scale = (group_scale.float() * scale).unsqueeze(-1)
    codes = fp4_codes(torch.where(whole_scale == 0, torch.zeros(()), groups / whole_scale)).flatten(1)
    packed = codes[:, 0::2] << 4 | codes[:, 1::2]  # the first of two columns in the high half of the byte
    return {"weight": packed, "weight_scale": tile_scales(group_scale), "weight_scale_2": scale}


def fp4_codes(values: Tensor) -> Tensor:
    """The nearest 4-bit floats (1 sign, 2 exponent, 1 mantissa bit), ties to the even code, as uint8 below
    16.

    0, 0.5, 1, 1.5, 2, 3, 4, 6 are codes 0 to 7: below 2 they are 0.5 apart, below 4 then 1, and 2 above;
    `round` goes to even.
    """
    size = values.abs().clamp_(max=FP4_MAX)
    codes = torch.where(
        size < 2, (size * 2).round_(), torch.where(size < 4, size.round() + 2, (size / 2).round_() + 4)
    )
    return codes.to(torch.uint8).bitwise_or_(values.signbit().to(torch.uint8) << 3)


def tile_scales(scales: Tensor) -> Tensor:
    """Group scales (rows, groups) padded with 0 to (128 i, 4 j), in the order of cuBLAS' tiles of 128 x 4:
    row % 32, row // 32, group.
    """
    rows, groups = scales.shape
    # as bytes: float8 has few operations
    bits = F.pad(scales.view(torch.uint8), (0, -groups % 4, 0, -rows % ROWS))
    tiles = bits.unflatten(1, (-1, 4)).unflatten(0, (-1, 4, 32)).permute(0, 3, 2, 1, 4)
    return tiles.reshape(bits.shape).view(torch.float8_e4m3fn)


def rotation_size(columns: int) -> int | None:
    """Columns that ConvRot rotates together; None if no size divides them."""
    return next((size for size in ROTATIONS if columns % size == 0), None)


def hadamard(size: int) -> Tensor:
    """ConvRot's matrix: orthogonal, symmetric, and without a constant column, so that a mean is spread as
    well. `size` is a power of 4.
    """
    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)
    matrix = four
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, four)
    return matrix / math.sqrt(size)


def _int8_description(shape: Shape) -> dict:
    size = rotation_size(shape[1])
    return {"format": "int8_tensorwise", **({"convrot": True, "convrot_groupsize": size} if size else {})}


FORMATS = {
    # Without calibrated input scales core would clip activations at 448: it is told to multiply in the
    # model's own precision.
    "fp8": Format(
        needs_largest=True,
        fits=lambda shape: True,
        stored=lambda shape: {"weight": (torch.float8_e4m3fn, shape), "weight_scale": (torch.float32, ())},
        describe=lambda shape: {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
        quantize=quantize_fp8,
    ),
    "int8": Format(
        needs_largest=False,
        fits=lambda shape: True,
        stored=lambda shape: {"weight": (torch.int8, shape), "weight_scale": (torch.float32, (shape[0], 1))},
        describe=_int8_description,
        quantize=quantize_int8,
    ),
    "nvfp4": Format(
        needs_largest=True,
        fits=lambda shape: shape[0] % 16 == 0 and shape[1] % FP4_GROUP == 0,
        stored=lambda shape: {
            "weight": (torch.uint8, (shape[0], shape[1] // 2)),
            "weight_scale": (
                torch.float8_e4m3fn,
                (shape[0] + -shape[0] % ROWS, shape[1] // FP4_GROUP + -(shape[1] // FP4_GROUP) % 4),
            ),
            "weight_scale_2": (torch.float32, ()),
        },
        describe=lambda shape: {"format": "nvfp4"},
        quantize=quantize_nvfp4,
    ),
}
