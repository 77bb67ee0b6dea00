"""Sampling an image, or an image with its intrinsic maps: shared initial noise, diffusers' schedulers.

The network is a callable, which also couples the streams.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import OnStep

Latents = dict[str, Tensor]  # stream -> (b, c, h, w)
Predict = Callable[[Latents, Tensor], Latents]  # latents and DDPM timestep to the model output after CFG


def draw_noise(seed: int, shape: tuple[int, int, int, int]) -> Tensor:
    """Noise (b, c, h, w) on the CPU; image i's depends on seed + i alone, not on the batch."""
    count, *each = shape
    generators = (torch.Generator().manual_seed(seed + index) for index in range(count))
    return torch.stack([torch.randn(each, generator=generator) for generator in generators])


def sample_streams(
    predict: Predict,
    noise: Tensor,
    scheduler: Any,
    *,
    streams: Sequence[str],
    steps: int,
    on_step: OnStep | None = None,
) -> Latents:
    """From noise (b, c, h, w) of unit standard deviation to each stream's clean latents (b, c, h, w).

    The scheduler's timesteps must be DDPM timesteps. It is not modified: each stream has a copy. `on_step`
    gets the predicted x0 of each stream if the scheduler returns it (DDIM and Euler do), else the latents
    after the step.
    """
    if steps < 1:
        raise ValueError(f"Expected at least 1 step of sampling, got {steps}. Give a greater number.")
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    counters = {stream: copy.deepcopy(scheduler) for stream in streams}
    latents = {stream: noise * scheduler.init_noise_sigma for stream in streams}
    for step, t in enumerate(scheduler.timesteps, start=1):
        predicted = predict(
            {stream: counters[stream].scale_model_input(x, t) for stream, x in latents.items()}, t
        )
        outputs = {stream: counters[stream].step(predicted[stream], t, x) for stream, x in latents.items()}
        latents = {stream: output.prev_sample for stream, output in outputs.items()}
        if on_step is not None:
            clean = {
                stream: getattr(output, "pred_original_sample", None) for stream, output in outputs.items()
            }
            on_step(step, steps, latents if any(x0 is None for x0 in clean.values()) else clean)
    return latents
