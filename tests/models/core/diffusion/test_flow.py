"""Rectified flow: schedules against exact fractions, steps against the straight line they integrate."""

from fractions import Fraction

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.diffusion.flow import (
    add_noise,
    shift_time,
    step_velocity,
    step_x0,
    velocity_to_x0,
    warp_time,
)

X0, NOISE = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[0.25, 1.0], [-1.0, 2.0]])


def test_shift_keeps_the_ends_and_moves_towards_noise():
    tau = torch.linspace(1, 0, 11)
    shifted = shift_time(tau, 1.1)
    assert shifted[0] == 1 and shifted[-1] == 0
    odds = (
        (1 - shifted[1:-1].double()) / shifted[1:-1].double() * torch.tensor(1.1, dtype=torch.float64).exp()
    )
    assert_close(odds, (1 - tau[1:-1].double()) / tau[1:-1].double(), dtype=torch.float32)
    assert_close(shift_time(tau, 0.0), tau)


def test_shift_with_sigma_powers_the_odds():
    expected = 1 / (1 + (1 / 0.25 - 1) ** 2)
    assert float(shift_time(torch.tensor(0.25), 0.0, 2.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("log2_alpha", [-14, -5, 0, 5])
def test_warp_multiplies_the_odds_by_alpha(log2_alpha):
    alpha, t = Fraction(2) ** log2_alpha, Fraction(3, 4)
    assert (
        float(warp_time(torch.tensor(0.75), log2_alpha))
        == pytest.approx(float(alpha * t / (1 + (alpha - 1) * t)), rel=1e-5)
    )


def test_warp_stays_between_0_and_1():
    for log2_alpha in (-19.3, -13.7, 17.2):
        warped = warp_time(torch.linspace(0, 1, 1001), log2_alpha)
        assert warped.min() == 0 and warped.max() <= 1


def test_noise_velocity_and_x0_agree():
    t = torch.tensor([0.25, 0.75])
    x = add_noise(X0, NOISE, t)
    assert_close(x, torch.tensor([[0.8125, -1.25], [-0.625, 2.25]]))
    assert_close(velocity_to_x0(x, NOISE - X0, t), X0)


def test_true_predictions_follow_the_line():
    t, t_next = torch.tensor(0.75), torch.tensor(0.5)
    x, wanted = add_noise(X0, NOISE, t), add_noise(X0, NOISE, t_next)
    assert_close(step_velocity(x, NOISE - X0, t, t_next), wanted)
    assert_close(step_x0(x, X0, t, t_next), wanted)


def test_last_step_from_x0_is_exact():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    x0 = torch.randn(100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(step_x0(x, x0, torch.tensor(0.0123), torch.tensor(0.0)), x0)


def test_floor_falls_short_as_in_the_release():
    t, zero = torch.tensor(0.03), torch.tensor(0.0)
    x = add_noise(X0, NOISE, t)
    assert_close(step_x0(x, X0, t, zero, 0.05), x - 0.03 * (x - X0) / 0.05)
    assert torch.equal(step_x0(x, X0, torch.tensor(0.05), zero, 0.05), X0)


def test_a_stream_whose_time_stands_still_is_untouched():
    zero, nan = torch.tensor(0.0), torch.full_like(X0, float("nan"))
    assert step_velocity(X0, nan, zero, zero) is X0
    assert step_x0(X0, nan, zero, zero) is X0
