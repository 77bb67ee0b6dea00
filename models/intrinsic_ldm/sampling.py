"""Sampling an image, or an image beside its intrinsic maps: one noise for all streams, and a stock scheduler of diffusers.

The network is a callable; what couples the streams is its business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Latents = dict[str, Tensor]  # of each stream, b c h w
Predict = Callable[[Latents, Tensor], Latents]  # latents and DDPM time to the network's word on each
OnStep = Callable[[int, int], None]  # steps done, steps in all; may raise to stop


def sample_streams(
    predict: Predict, noise: Tensor, scheduler: Any, *, streams: Sequence[str], steps: int, on_step: OnStep | None = None
) -> Latents:
    """From noise b c h w of unit spread to each stream's latents of unit spread, in `steps` steps of the scheduler.

    The scheduler's times are DDPM times, whichever steps it makes of them. It is not changed: each stream counts on a copy.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps arrived; sampling takes at least 1.")
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    counters = {stream: copy.deepcopy(scheduler) for stream in streams}
    latents = {stream: noise * scheduler.init_noise_sigma for stream in streams}
    for done, t in enumerate(scheduler.timesteps, start=1):
        said = predict({stream: counters[stream].scale_model_input(x, t) for stream, x in latents.items()}, t)
        latents = {stream: counters[stream].step(said[stream], t, x, return_dict=False)[0] for stream, x in latents.items()}
        if on_step is not None:
            on_step(done, steps)
    return latents
