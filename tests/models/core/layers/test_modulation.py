"""Time embedding and adaptive norms against their formulas in float64."""

import math

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.layers.modulation import (
    Modulation,
    ModulationProjection,
    modulate,
    stack_modulation,
    timestep_embedding,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dim", "period", "factor"), [(256, 10000, 1000.0), (12, 100, 7.0)])
def test_embedding_is_cosines_then_sines(dim, period, factor):
    t = torch.tensor([0.0, 0.01, 0.5, 1.0])
    angle = (
        factor
        * t.double()[:, None]
        * torch.tensor([period ** (-2 * k / dim) for k in range(dim // 2)], dtype=torch.float64)
    )
    actual = timestep_embedding(t, dim, dtype=torch.float32, max_period=period, time_factor=factor)
    # float32 angles up to 1000 are known to 6e-5
    assert_close(actual, torch.cat([angle.cos(), angle.sin()], dim=1), atol=2e-4)


def test_bfloat16_embedding_rounds_the_time_before_the_factor():
    t = torch.tensor([0.7504, 0.7512])  # the same bfloat16 number
    embedding = timestep_embedding(t, 256, dtype=torch.bfloat16)
    assert embedding.dtype == torch.bfloat16 and torch.equal(embedding[0], embedding[1])
    assert not torch.equal(*timestep_embedding(t, 256, dtype=torch.float32))
    expected = math.cos(float(torch.tensor(0.75 * 1000).bfloat16()))
    assert float(embedding[0, 0]) == pytest.approx(expected, abs=2**-8)


def test_modulate_is_a_norm_without_parameters():
    x, shift, scale = random(2, 5, 8), random(2, 1, 8, seed=1), random(2, 1, 8, seed=2)
    wide = x.double()
    normal = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    assert_close(modulate(x, shift, scale), normal * scale + shift, dtype=torch.float32)


def test_projection_gives_shift_one_plus_scale_and_gate():
    projection = ModulationProjection(4, 2)
    vec = random(3, 4)
    raw = (vec * vec.sigmoid()) @ projection.lin.weight.T
    first, second = projection(vec)
    for triple, start in ((first, 0), (second, 12)):
        parts = raw[:, None, start : start + 12].chunk(3, dim=-1)
        for actual, expected in zip(triple, (parts[0], 1 + parts[1], parts[2]), strict=True):
            assert_close(actual, expected)


def test_stacked_modulation_gives_every_row_its_own():
    one, two = (Modulation(*random(3, 2, 1, 4, seed=seed).unbind(0)) for seed in (0, 1))
    stacked = stack_modulation([(one, 3), (two, 2)])
    x = random(2, 5, 4, seed=2)
    whole = modulate(x, stacked.shift, stacked.scale)
    assert_close(whole[:, :3], modulate(x[:, :3], one.shift, one.scale))
    assert_close(whole[:, 3:], modulate(x[:, 3:], two.shift, two.scale))
    assert stacked.gate.shape == (2, 5, 4)
