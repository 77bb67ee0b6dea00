"""Rectified flow, x_t = (1 - t) x0 + t noise: t = 1 noise, t = 0 clean, velocity = noise - x0."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shift_time(tau: Tensor, mu: float, sigma: float = 1.0) -> Tensor:
    """Shift times towards the noise: e^mu / (e^mu + (1/tau - 1)^sigma). 0 stays exactly 0 and 1 exactly 1."""
    return math.exp(mu) / (math.exp(mu) + (1 / tau - 1) ** sigma)


def warp_time(t: Tensor, log2_alpha: float) -> Tensor:
    """Time of a second stream: alpha t / (1 + (alpha - 1) t). alpha > 1: noisier than the first; 1: equal."""
    alpha = 2.0**log2_alpha
    return (alpha * t / (1 + (alpha - 1) * t)).clamp(
        0, 1
    )  # close to t = 1 a small alpha rounds to slightly more than 1


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t of x0 'b ...' at times t, (b,) or one number for all."""
    t = match_dims(t, x0)
    return (1 - t) * x0 + t * noise


def velocity_to_x0(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The clean data x0 of x at time t with this velocity."""
    return x - match_dims(t, x) * velocity


def step_velocity(x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One Euler step along a velocity, from the number t to t_next. t == t_next returns x itself.

    Numbers on the CPU are compared without waiting for x's device.
    """
    return x if t == t_next else x + (t_next - t) * velocity


def step_x0(x: Tensor, x0: Tensor, t: Tensor, t_next: Tensor, t_min: float = 0.0) -> Tensor:
    """The same Euler step from a prediction of the clean data; a step to t_next = 0 lands exactly on x0.

    With `t_min` > 0 the velocity is (x - x0) / max(t, t_min), as in the released sampler: it falls short when
    t < t_min.
    """
    if t == t_next:
        return x
    return torch.lerp(x0, x, (1 + (t_next - t) / t.clamp(min=t_min)).to(x0.device, non_blocking=True))


def match_dims(t: Tensor, x: Tensor) -> Tensor:
    """Times (b,) with trailing singleton axes, to broadcast with x (b, ...); a scalar stays a scalar."""
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t
