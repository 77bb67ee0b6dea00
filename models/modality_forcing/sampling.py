"""Schedules and the sampling loop: pure functions; the network is a callable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.diffusion.flow import add_noise, shift_time, step_velocity, step_x0, velocity_to_x0, warp_time
from ..core.diffusion.guidance import guide_streams
from ..core.protocols import OnStep
from .config import Mode, check_mode

NetworkCall = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
ALL_TIMES = (1.0, 0.0)  # from noise to clean
LOG2_ALPHA_MAX = 20  # beyond this, float32 times of one stream collapse onto 0 or 1


@dataclass(frozen=True)
class TimeSchedule:
    """Each stream's time at the N+1 nodes; the network runs at the first N. An input stream has time 0."""

    t_rgb: Tensor  # (N+1,) float32, from 1 down to 0, or all 0
    t_depth: Tensor

    @property
    def steps(self) -> int:
        return len(self.t_rgb) - 1


@dataclass(frozen=True)
class PartialDepth:
    """Known depth: before every step its pixels are set to (1 - t) depth + t noise at its own time."""

    depth: Tensor  # (b, 1, h, w), network space
    noise: Tensor  # (b, 1, h, w)
    mask: Tensor  # (b, 1, h, w) bool, True = keep

    def impose(self, depth: Tensor, t: Tensor) -> Tensor:
        return torch.where(self.mask, add_noise(self.depth, self.noise, t), depth)


def make_schedule(
    mode: Mode, steps: int, *, log2_alpha: float | None = None, mu: float = 1.1, sigma: float = 1.0
) -> TimeSchedule:
    """The released time tables. Joint mode: `log2_alpha` > 0 denoises the image first, < 0 the depth."""
    check_mode(mode)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"Expected a whole number of steps, at least 1, got {steps!r}. Give more steps.")
    if log2_alpha is not None and not abs(log2_alpha) <= LOG2_ALPHA_MAX:
        raise ValueError(
            f"Expected log2_alpha from -{LOG2_ALPHA_MAX} to {LOG2_ALPHA_MAX}, or None, got {log2_alpha!r}. "
            "Give another."
        )
    shifted = shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float32), mu, sigma)
    clean = torch.zeros_like(shifted)
    if mode == "image_to_depth":
        return TimeSchedule(t_rgb=clean, t_depth=shifted)
    if mode == "depth_to_image":
        return TimeSchedule(t_rgb=shifted, t_depth=clean)
    return TimeSchedule(
        t_rgb=shifted, t_depth=shifted if log2_alpha is None else warp_time(shifted, log2_alpha)
    )


def draw_noise(seed: int, rgb_shape: tuple[int, ...], depth_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Gaussian float32 noise from one CPU generator, RGB first: equal to ComfyUI's for a nested latent."""
    generator = torch.Generator("cpu").manual_seed(seed)
    rgb = torch.randn(rgb_shape, generator=generator, dtype=torch.float32)
    return rgb, torch.randn(depth_shape, generator=generator, dtype=torch.float32)


def sample(
    network_call: NetworkCall,
    rgb: Tensor,
    depth: Tensor,
    schedule: TimeSchedule,
    *,
    context: Tensor,
    null_context: Tensor | None = None,
    guidance: float = 1.0,
    depth_guidance: float | None = None,
    guidance_interval: tuple[float, float] = ALL_TIMES,
    x0_t_min: float = 0.0,
    on_step: OnStep | None = None,
    partial_depth: PartialDepth | None = None,
) -> tuple[Tensor, Tensor]:
    """Euler steps along the schedule: noise, or a clean input stream -> clean RGB latent and network-space
    depth.

    network_call(rgb, depth, context, t_rgb (b,), t_depth (b,)) -> (RGB velocity, clean depth). Guidance acts
    above 1, on both raw outputs, or with `depth_guidance` on the depth's by that, and then needs
    `null_context`; either context may have batch 1. `x0_t_min` = 0.05 is the released lower bound on the
    depth's time; with 0 the last step ends exactly on the prediction. on_step's latents are the clean
    predictions of "image" (b, c, h, w) and "depth" (b, 1, H, W). `guidance_interval`: the times between which
    guidance acts, (1, 0) being all; elsewhere a step is one network call instead of two.
    """
    scales = (guidance, guidance if depth_guidance is None else depth_guidance)
    guided = guided_call(network_call, context, null_context, scales, batch=len(rgb))
    alone = guided_call(network_call, context, None, (1.0, 1.0), batch=len(rgb))
    acts = guided_steps(schedule, guidance_interval)
    # on the CPU, where comparing two times waits for no device
    t_rgb, t_depth = schedule.t_rgb.cpu(), schedule.t_depth.cpu()
    near = [t.to(rgb.device) for t in (t_rgb, t_depth)]
    for i in range(schedule.steps):
        predict = guided if acts[i] else alone
        if partial_depth is not None:
            depth = partial_depth.impose(depth, t_depth[i])
        velocity, x0 = predict(rgb, depth, *(t[i].expand(len(rgb)) for t in near))
        if on_step is not None:
            on_step(i + 1, schedule.steps, {"image": velocity_to_x0(rgb, velocity, t_rgb[i]), "depth": x0})
        rgb = step_velocity(rgb, velocity, t_rgb[i], t_rgb[i + 1])
        depth = step_x0(depth, x0, t_depth[i], t_depth[i + 1], x0_t_min)
    if partial_depth is not None:
        depth = partial_depth.impose(depth, t_depth[-1])
    return rgb, depth


def guided_steps(schedule: TimeSchedule, interval: tuple[float, float]) -> list[bool]:
    """Per step whether guidance acts: at image times from interval[0] to interval[1], or, with a given image,
    at such depth times.
    """
    begin, end = check_interval(interval)
    times = schedule.t_rgb if bool(schedule.t_rgb.any()) else schedule.t_depth
    return [end <= t <= begin for t in times.tolist()]


def check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """(from, to) with 1 >= from >= to >= 0; a ValueError else."""
    begin, end = interval
    if not 1 >= begin >= end >= 0:
        raise ValueError(
            f"Expected a guidance interval of two times from 1 (noise) down to 0 (clean), got {interval}. "
            "Give the larger one first; (1, 0) is all steps."
        )
    return begin, end


def guided_call(
    network_call: NetworkCall,
    context: Tensor,
    null_context: Tensor | None,
    guidance: tuple[float, float],
    *,
    batch: int,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(rgb, depth, t_rgb, t_depth) -> outputs: one network call, or two with CFG; guidance (image, depth)."""
    for scale in guidance:
        if not math.isfinite(scale):
            raise ValueError(
                f"Expected a finite guidance, got {scale!r}. Give a number; guidance acts above 1."
            )
    scales = tuple(max(1.0, scale) for scale in guidance)
    if max(scales) > 1 and null_context is None:
        raise ValueError(
            f"Expected null_context, the encoding of the empty prompt, with guidance {max(scales):g}, got "
            "none. Give it, or use guidance 1."
        )
    prompted = expand_context(context, batch, "context")
    if max(scales) <= 1:
        return lambda rgb, depth, t_rgb, t_depth: network_call(rgb, depth, prompted, t_rgb, t_depth)
    empty = expand_context(null_context, batch, "null context")

    def call(rgb, depth, t_rgb, t_depth):
        outputs = network_call(rgb, depth, prompted, t_rgb, t_depth)
        return guide_streams(outputs, network_call(rgb, depth, empty, t_rgb, t_depth), scales)

    return call


def expand_context(context: Tensor, batch: int, name: str) -> Tensor:
    """A context of batch 1 broadcast to the batch; a ValueError names any other mismatch."""
    if len(context) not in (1, batch):
        raise ValueError(
            f"Expected a batch of 1 or {batch} in {name}, got {len(context)}. Give one prompt for all "
            "images, or one each."
        )
    return context.expand(batch, *context.shape[1:])
