"""The DPT head: its size, the skip that carries ReLU(x), and the position map against a plain loop."""

import math

import torch

from spatialweave.models.core.layers.dpt import DPTHead, ResidualConvUnit, add_positions


def test_head_maps_tokens_to_the_images_size_whatever_the_grid():
    torch.manual_seed(0)
    head = DPTHead(24, features=16, out_channels=(8, 12, 16, 16), outputs=3).requires_grad_(False)
    for grid in ((4, 4), (1, 1), (3, 7)):
        size = (14 * grid[0], 14 * grid[1])
        layers = [torch.randn(2, grid[0] * grid[1], 24) for _ in range(4)]
        out = head(layers, grid, size)
        assert out.shape == (2, 3, *size) and out.isfinite().all()
        # one image at a time gives the same
        alone = torch.cat([head([layer[i : i + 1] for layer in layers], grid, size) for i in range(2)])
        assert (out - alone).abs().max() < 1e-5


def test_residual_unit_skips_with_the_rectified_input():
    unit = ResidualConvUnit(4, operations=torch.nn, device=None, dtype=None).requires_grad_(False)
    for parameter in unit.parameters():
        parameter.zero_()
    x = torch.randn(1, 4, 5, 5)
    kept = x.clone()
    assert torch.equal(unit(x), x.clamp(min=0)) and torch.equal(x, kept), "the input itself is left as it is"


def test_positions_are_sines_and_cosines_of_the_place_in_an_image_of_diagonal_two():
    height, width, channels, ratio = 3, 5, 8, 1.5
    found = add_positions(torch.zeros(1, channels, height, width), ratio)[0] / 0.1
    diagonal = math.hypot(ratio, 1)
    for row in range(height):
        for column in range(width):
            x = ratio / diagonal * (2 * column - (width - 1)) / width
            y = 1 / diagonal * (2 * row - (height - 1)) / height
            waves = [f(p * 100 ** (-k / 2)) for p in (x, y) for f in (math.sin, math.cos) for k in range(2)]
            assert max(abs(a - b) for a, b in zip(found[:, row, column].tolist(), waves, strict=True)) < 1e-5
