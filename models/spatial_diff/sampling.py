"""Schedule and sampling loop of an editor: pure functions; the network is a callable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.diffusion.flow import shift_time, step_velocity, velocity_to_x0
from ..core.diffusion.guidance import guide
from ..core.protocols import OnStep

PredictVelocity = Callable[[Tensor, Tensor], Tensor]  # x (b, c, h, w), t (b,) -> velocity


def make_times(steps: int, *, mu: float) -> Tensor:
    """The N+1 times of N steps (N+1,) float32, from 1 down to 0, shifted towards the noise by `mu`."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"Expected a whole number of steps, at least 1, got {steps!r}. Give more steps.")
    return shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float32), mu)


def draw_latent_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Gaussian float32 noise from a CPU generator: equal to ComfyUI's for a seed and a shape."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def guide_velocity(prompted: PredictVelocity, unprompted: PredictVelocity, scale: float) -> PredictVelocity:
    """Classifier-free guidance over two predictions; a scale of 1 runs the prompted one alone."""
    if scale == 1:
        return prompted
    return lambda x, t: guide(prompted(x, t), unprompted(x, t), scale)


def sample(predict: PredictVelocity, x: Tensor, times: Tensor, *, on_step: OnStep | None = None) -> Tensor:
    """Euler steps from noise x (b, c, h, w) to a clean latent."""
    steps = len(times) - 1
    for step, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True), 1):
        rows = t.expand(len(x)).to(x.device)
        velocity = predict(x, rows)
        if on_step:
            on_step(step, steps, {"image": velocity_to_x0(x, velocity, rows)})
        x = step_velocity(x, velocity, t, t_next)
    return x
