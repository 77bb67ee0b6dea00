"""Rotary positions against complex numbers in float64."""

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.layers.positions import (
    apply_grid_rotary,
    apply_rotary,
    grid_positions,
    grid_rotary_table,
    rotary_table,
    text_positions,
)

AXES, THETA = (4, 8, 2, 6), 2000


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turn(x, positions):
    """Each pair of neighbouring channels as a complex number, turned by position * theta^(-2i/dim)
    of its axis.
    """
    angles = [
        p[:, None] * torch.tensor([THETA ** (-i / dim) for i in range(0, dim, 2)], dtype=torch.float64)
        for p, dim in zip(positions.double().unbind(1), AXES, strict=True)
    ]
    angle = torch.cat(angles, dim=1)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def test_ids_are_modality_row_column_text_index():
    assert grid_positions(2, 3, modality=1).tolist() == [
        [1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 2, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 2, 0],
    ]  # fmt: skip
    assert text_positions(3).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]


def test_rotary_turns_neighbouring_pairs():
    positions = torch.cat([text_positions(3), grid_positions(2, 5), grid_positions(2, 5, modality=1)])
    x = random(2, 3, len(positions), sum(AXES))
    assert_close(
        apply_rotary(x, rotary_table(positions, AXES, THETA)), turn(x, positions), dtype=torch.float32
    )


def test_scores_depend_on_the_difference_of_positions_alone():
    q, k = random(1, 1, 1, sum(AXES), seed=1), random(1, 1, 1, sum(AXES), seed=2)

    def score(a, b):
        tables = (rotary_table(torch.tensor([p], dtype=torch.float32), AXES, THETA) for p in (a, b))
        turned_q, turned_k = (apply_rotary(x, table) for x, table in zip((q, k), tables, strict=True))
        return (turned_q * turned_k).sum()

    assert_close(score([1, 5, 9, 2], [0, 2, 3, 4]), score([1, 9, 13, 1], [0, 6, 7, 3]), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_rotary_is_computed_in_float32_and_returns_its_input_type(dtype):
    positions = grid_positions(40, 50)
    x = random(1, 1, len(positions), sum(AXES)).to(dtype)
    turned = apply_rotary(x, rotary_table(positions, AXES, THETA))
    assert turned.dtype == dtype
    assert_close(
        turned, turn(x, positions), dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    )


def test_grid_rotary_turns_rows_in_the_first_half_and_columns_in_the_second():
    """Channels i and i + d/4 of each half as a complex number; special tokens do not turn,
    patches begin at (1, 1).
    """
    x = random(2, 3, 2 + 3 * 4, 16)
    rows = torch.tensor([0, 0] + [1 + i // 4 for i in range(12)], dtype=torch.float64)
    columns = torch.tensor([0, 0] + [1 + i % 4 for i in range(12)], dtype=torch.float64)
    expected = x.double().clone()
    for half, place in enumerate((rows, columns)):
        part = x.double()[..., 8 * half : 8 * half + 8]
        angle = place[:, None] * torch.tensor([100.0 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64)
        turned = torch.complex(part[..., :4], part[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
        expected[..., 8 * half : 8 * half + 8] = torch.cat((turned.real, turned.imag), dim=-1)
    table = grid_rotary_table(3, 4, 16, 100.0, special=2)
    assert_close(apply_grid_rotary(x, table), expected, dtype=torch.float32)
    assert torch.equal(apply_grid_rotary(x, table)[:, :, :2], x[:, :, :2])
