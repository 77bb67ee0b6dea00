"""Padding to a multiple and back, against numpy's edge mode."""

import numpy as np
import pytest
import torch

from spatialweave.models.core.padding import crop_to, pad_to, round_up


@pytest.mark.parametrize(
    ("size", "multiple", "expected"), [((1, 1), 16, (16, 16)), ((16, 17), 16, (16, 32)), ((5, 9), 1, (5, 9))]
)
def test_sizes_are_rounded_up_to_the_next_multiple(size, multiple, expected):
    assert round_up(size, multiple) == expected


def test_padding_repeats_the_last_row_and_column_and_cropping_undoes_it():
    values = np.random.default_rng(0).random((2, 3, 5, 6), dtype=np.float32)
    padded = pad_to(torch.from_numpy(values), (8, 8))
    assert np.array_equal(padded.numpy(), np.pad(values, ((0, 0), (0, 0), (0, 3), (0, 2)), mode="edge"))
    assert np.array_equal(crop_to(padded, (5, 6)).numpy(), values)
