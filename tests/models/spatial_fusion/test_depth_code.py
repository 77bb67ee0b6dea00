"""Depth codes against numpy, and what they must not depend on."""

import numpy as np
import pytest
import torch

from spatialweave.models.spatial_fusion.depth_code import code_depth, resize_code

LOG = {"code": "log_iqr", "bound": 3.0, "least_iqr": 0.1}
MEAN = {**LOG, "code": "unit_mean"}


def draw(shape=(2, 24, 31), seed=0):
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.normal(0.5, 0.8, shape)).astype(np.float32)
    mask = rng.random(shape) > 0.3
    return depth, mask


def coded(depth, mask, settings):
    return code_depth(torch.from_numpy(depth), torch.from_numpy(mask), **settings).numpy()


def test_log_code_is_log_depth_by_median_and_interquartile_range():
    depth, mask = draw()
    found = coded(depth, mask, LOG)
    for row, values, known in zip(found, depth, mask):
        log = np.log(values[known].astype(np.float64))
        low, median, high = np.percentile(log, (25, 50, 75))
        assert np.abs(row[known] - np.clip((log - median) / (high - low), -3, 3)).max() < 1e-5
        assert not row[~known].any()


def test_mean_code_is_depth_by_mean_contracted_around_zero():
    depth, mask = draw()
    found = coded(depth, mask, MEAN)
    for row, values, known in zip(found, depth, mask):
        r = values[known].astype(np.float64) / values[known].mean(dtype=np.float64)
        assert np.abs(row[known] - (np.where(r <= 1, r, 2 - 1 / r) - 1)).max() < 1e-5
    assert found.min() > -1 and found.max() < 1


@pytest.mark.parametrize("settings", [LOG, MEAN], ids=["log_iqr", "unit_mean"])
def test_codes_do_not_depend_on_the_unit_nor_on_invalid_pixels(settings):
    depth, mask = draw()
    want = coded(depth, mask, settings)
    other = np.where(mask, depth * 1000, 7.0).astype(np.float32)
    assert np.abs(coded(other, mask, settings) - want).max() < 1e-4


def test_constant_depth_and_maps_without_a_valid_pixel_are_zero():
    flat, mask = np.full((1, 8, 8), 3.7, np.float32), np.ones((1, 8, 8), bool)
    assert np.abs(coded(flat, mask, LOG)).max() < 1e-6
    assert not coded(flat, ~mask, LOG).any() and not coded(flat, ~mask, MEAN).any()


def test_a_nearly_flat_wall_is_not_stretched():
    depth = np.linspace(1.0, 1.02, 64, dtype=np.float32).reshape(1, 8, 8)
    assert np.abs(coded(depth, np.ones_like(depth, bool), LOG)).max() < 0.11  # .02 / 2 of .1


def test_resizing_averages_valid_pixels_alone():
    code, mask = torch.ones(1, 32, 48), torch.ones(1, 32, 48, dtype=torch.bool)
    code[:, :, 24:], mask[:, :, 24:] = 1e6, False
    small, known = resize_code(code, mask, (8, 12))
    assert known[:, :, :5].all() and not known[:, :, 7:].any()
    assert (small[:, :, :6][known[:, :, :6]] - 1).abs().max() < 1e-5 and small[~known].abs().max() == 0


def test_resizing_to_the_same_size_changes_nothing():
    code, mask = torch.rand(1, 8, 12), torch.rand(1, 8, 12) > 0.5
    same, known = resize_code(code, mask, (8, 12))
    assert torch.equal(same, code) and torch.equal(known, mask)
