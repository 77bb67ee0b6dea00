"""Stable Diffusion's noise schedule and its timesteps in terms of other samplers: pure functions of numbers.

Three measures of one noise level, compared at equal signal-to-noise ratio. With x_t = sqrt(a) x0 + sqrt(1 -
a) noise: DDPM t (0..999, the index of a), k-diffusion's sigma = sqrt((1 - a) / a), and flow matching's time
sigma / (1 + sigma).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache

STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012  # "scaled linear": the square roots are equally spaced
# of a timestep found by inversion: float32 sigmas have no more precision, and a schedule's edge must not
# depend on
# the remaining digits
DIGITS = 3


@cache
def sigma_table() -> tuple[float, ...]:
    """k-diffusion's sigma for DDPM t = 0..999 of SD1, SD2 and SDXL."""
    sigmas, kept = [], 1.0
    low, high = math.sqrt(BETA_START), math.sqrt(BETA_END)
    for step in range(STEPS):
        kept *= 1 - (low + (high - low) * step / (STEPS - 1)) ** 2
        sigmas.append(math.sqrt((1 - kept) / kept))
    return tuple(sigmas)


def ddpm_to_sigma(t: float) -> float:
    """DDPM t, also between integers (linear in log sigma), to k-diffusion's sigma; clamped at both ends."""
    t = min(max(t, 0.0), STEPS - 1.0)
    low = min(int(t), STEPS - 2)
    table = sigma_table()
    return math.exp(math.log(table[low]) + (t - low) * (math.log(table[low + 1]) - math.log(table[low])))


def sigma_to_ddpm(sigma: float) -> float:
    """The inverse of `ddpm_to_sigma`, to a thousandth, clamped to the table's first and last row."""
    table = sigma_table()
    if sigma <= table[0]:
        return 0.0
    if sigma >= table[-1]:
        return STEPS - 1.0
    high = bisect_left(table, sigma)
    low, width = math.log(table[high - 1]), math.log(table[high]) - math.log(table[high - 1])
    return round(high - 1 + (math.log(sigma) - low) / width, DIGITS)


def sigma_to_flow(sigma: float) -> float:
    """k-diffusion's sigma to flow time in [0, 1) of the same SNR: x_t = (1 - t) x0 + t noise."""
    return sigma / (1 + sigma)


def flow_to_sigma(t: float) -> float:
    """Flow time in [0, 1] to k-diffusion's sigma; 1, pure noise, is infinite."""
    return math.inf if t >= 1 else t / (1 - t)
