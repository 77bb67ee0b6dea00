"""Carrying a second stream must change nothing but the bookkeeping: compared with a sampler that steps both
streams itself.
"""

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.diffusion.carry import carried_velocity, from_carried, release, to_carried
from spatialweave.models.core.diffusion.flow import warp_time

SIGMAS = torch.tensor([1.0, 0.87, 0.6, 0.33, 0.1, 0.02, 0.0])
ORDERS = [-6.0, -1.0, 0.0, 1.0, 5.0]


def toy_network(main, second, sigma, t):
    """Any smooth function of both streams and both times."""
    rows = (-1, 1, 1)
    velocity = torch.tanh(main * 0.7 + second.mean() * sigma.reshape(rows)) - 0.2 * main
    return velocity, torch.sin(second * 1.3 + main.sum() * 0.01) * (1 - 0.5 * t.reshape(rows))


def two_stream_euler(main, second, log2_alpha):
    """Each stream with its own time, x0 form for the second: the definition, without carrying."""
    t = warp_time(SIGMAS.double(), log2_alpha)
    for i in range(len(SIGMAS) - 1):
        here, there = SIGMAS[i].double().expand(2), SIGMAS[i + 1].double()
        velocity, x0 = toy_network(main, second, here, t[i].expand(2))
        main = main + (there - here[0]) * velocity
        second = x0 + t[i + 1] / t[i] * (second - x0)
    return main, second


def carried_euler(main, second, log2_alpha):
    """A sampler that knows one sigma only, as ComfyUI's do: x + (sigma' - sigma) (x - denoised) / sigma
    for the whole pack.
    """
    carried = second  # at sigma 1 both are pure noise
    for i in range(len(SIGMAS) - 1):
        sigma, following = SIGMAS[i].expand(2), SIGMAS[i + 1]
        seen = release(carried, sigma, log2_alpha)
        velocity, x0 = toy_network(main, seen, sigma, warp_time(sigma, log2_alpha))
        streams = []
        for x, v in ((main, velocity), (carried, carried_velocity(carried, x0, sigma, log2_alpha))):
            denoised = x - sigma.reshape(-1, 1, 1) * v
            streams.append(
                x + (following - sigma.reshape(-1, 1, 1)) * (x - denoised) / sigma.reshape(-1, 1, 1)
            )
        main, carried = streams
    return main, from_carried(carried, log2_alpha)


@pytest.mark.parametrize("log2_alpha", ORDERS)
def test_carried_euler_equals_two_stream_euler(log2_alpha):
    noise = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = two_stream_euler(noise[0].double(), noise[1].double(), log2_alpha)
    for got, want in zip(carried_euler(noise[0], noise[1], log2_alpha), expected):
        assert_close(got, want.float(), dtype=torch.float32)


@pytest.mark.parametrize("log2_alpha", ORDERS)
def test_carried_latent_is_a_flow_latent_of_the_main_sigma(log2_alpha):
    x0, eps = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)).double()
    for sigma in SIGMAS[:-1].double():
        t = warp_time(sigma, log2_alpha)
        assert torch.isclose(t / (1 - t), 2**log2_alpha * sigma / (1 - sigma)) or sigma == 1
        carried = (1 - sigma) * to_carried(x0, log2_alpha) + sigma * eps
        assert_close(release(carried, sigma.expand(4), log2_alpha), (1 - t) * x0 + t * eps)


@pytest.mark.parametrize("log2_alpha", ORDERS)
def test_a_clean_stream_comes_out_bit_equal(log2_alpha):
    """Powers of two only move the exponent, so a given stream survives the way in and out."""
    x0 = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(from_carried(to_carried(x0, log2_alpha), log2_alpha), x0)
    assert torch.equal(release(to_carried(x0, log2_alpha), torch.zeros(1), log2_alpha), x0)


def test_warped_time_keeps_the_ends_and_orders_the_streams():
    assert warp_time(torch.tensor([0.0, 1.0]), 5.0).tolist() == [0.0, 1.0]
    assert (
        (warp_time(SIGMAS[1:-1], 5.0) > SIGMAS[1:-1]).all()
        and (warp_time(SIGMAS[1:-1], -5.0) < SIGMAS[1:-1]).all()
    )
