"""Fewer bits: every value within half a step of its format, and the layouts core's kernels expect."""

import math

import pytest
import torch

from spatialweave.models.core.weights.quantization import (
    FORMATS,
    ROWS,
    fp4_codes,
    hadamard,
    largest_magnitude,
    quantize_fp8,
    quantize_int8,
    quantize_nvfp4,
    rotation_size,
    tile_scales,
)

SHAPES = [(16, 16), (48, 80), (128, 64), (272, 768)]
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def matrix(shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02
    values[1, 3], values[2] = 0.4, 0  # an outlier, and a row of nothing
    return values


def below(values, bound):
    assert (values.abs() <= bound * (1 + 1e-5) + 1e-12).all(), (values.abs() / bound).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_is_within_half_a_step(shape):
    values = matrix(shape)
    stored = quantize_fp8(values, largest_magnitude(values))
    scaled = values / stored["weight_scale"]
    step = torch.exp2(
        scaled.abs().clamp(min=2**-6).log2().floor() - 3
    )  # 3 bits of mantissa, subnormal below 2^-6
    below(stored["weight"].float() - scaled, step / 2)
    assert stored["weight"].float().abs().max() == 448


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_within_half_a_step_of_each_turned_row(shape):
    values = matrix(shape)
    stored = quantize_int8(values, 0.0)
    size = rotation_size(shape[1])
    turned = (values.unflatten(1, (-1, size)) @ hadamard(size)).flatten(1)
    below(stored["weight"] * stored["weight_scale"] - turned, stored["weight_scale"] / 2)
    assert stored["weight_scale"].shape == (shape[0], 1) and stored["weight"].abs().max() == 127
    back = (stored["weight"] * stored["weight_scale"]).unflatten(1, (-1, size)) @ hadamard(size)
    error = (back.flatten(1) - values).norm(dim=1)
    below(error, stored["weight_scale"][:, 0] / 2 * math.sqrt(shape[1]))  # turning keeps lengths


@pytest.mark.parametrize("shape", SHAPES)
def test_nvfp4_is_within_half_a_step_of_its_group(shape):
    values = matrix(shape)
    stored = quantize_nvfp4(values, largest_magnitude(values))
    codes = torch.stack((stored["weight"] >> 4, stored["weight"] & 15), dim=-1).flatten(1).long()
    read = torch.where(codes > 7, -1, 1) * FP4[codes % 8]
    scale = untile(stored["weight_scale"], shape).repeat_interleave(16, 1) * stored["weight_scale_2"]
    # a group's float8 scale is rounded: its largest value may be cut at 6 of what would be up
    # to 6 * (1 + 1/16)
    step = torch.where(read.abs() >= 4, 2.0, torch.where(read.abs() >= 2, 1.0, 0.5))
    below(read * scale - values, step / 2 * scale)


def untile(tiled, shape):
    """The scale of (row, group), from cuBLAS' description of its layout, one at a time."""
    rows, groups = shape[0], shape[1] // 16
    across, flat, out = tiled.shape[1] // 4, tiled.float().flatten(), torch.empty(rows, groups)
    for row in range(rows):
        for group in range(groups):
            tile = row // 128 * across + group // 4
            out[row, group] = flat[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + group % 4]
    return out


def test_ties_go_to_the_even_code():
    values = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -2.5, 0.2, 6, -6, -0.0])
    assert fp4_codes(values).tolist() == [0, 2, 2, 4, 4, 6, 6, 12, 0, 7, 15, 8]


def test_tiles_are_padded_with_zeros():
    scales = torch.rand(130, 5).to(torch.float8_e4m3fn)
    tiled = tile_scales(scales)
    assert tiled.shape == (256, 8) and torch.equal(untile(tiled, (130, 80)), scales.float())
    assert (tiled.float() == 0).sum() >= 256 * 8 - 130 * 5


@pytest.mark.parametrize("size", [16, 64, 256])
def test_the_turn_is_orthogonal_and_has_no_constant_column(size):
    turn = hadamard(size)
    assert torch.equal(turn, turn.T) and torch.allclose(turn @ turn, torch.eye(size), atol=1e-6)
    assert torch.allclose(
        turn.sum(0).abs(), torch.ones(size), atol=1e-5
    )  # a constant column would sum to the root of the size


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_stored_is_what_was_said(name, shape):
    kind, values = FORMATS[name], matrix(shape)
    made = kind.quantize(values, largest_magnitude(values))
    assert {suffix: (value.dtype, tuple(value.shape)) for suffix, value in made.items()} == kind.stored(shape)
    assert kind.fits(shape)


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_rows_make_the_whole(name):
    values = matrix((2 * ROWS + 16, 64))
    largest = largest_magnitude(values)
    whole = FORMATS[name].quantize(values, largest)
    parts = [FORMATS[name].quantize(block, largest) for block in values.split(ROWS)]
    for suffix, value in whole.items():
        joined = (
            torch.cat([part[suffix].view(torch.uint8) for part in parts]) if value.ndim else parts[0][suffix]
        )
        assert torch.equal(joined, value.view(torch.uint8) if value.ndim else value), suffix


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros(name):
    for value in FORMATS[name].quantize(torch.zeros(128, 64), 0.0).values():
        assert value.float().isfinite().all()
    assert not FORMATS[name].quantize(torch.zeros(128, 64), 0.0)["weight"].float().any()


def test_values_that_are_none_are_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        largest_magnitude(torch.tensor([[1.0, float("nan")]]))
    assert not FORMATS["nvfp4"].fits((24, 64)) and not FORMATS["nvfp4"].fits((64, 24))
