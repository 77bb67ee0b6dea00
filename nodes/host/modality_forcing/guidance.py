"""A CFG scale for the depth alone, through core's hook after its own CFG, and an interval of guidance."""

from __future__ import annotations

from functools import partial

import comfy.patcher_extension
import comfy.utils
from torch import Tensor

from ....models.modality_forcing.sampling import ALL_TIMES, check_interval
from .joint_model import network_config

KEY = "spatialweave_guidance_interval"


def with_depth_guidance(model, depth_cfg: float, interval: tuple[float, float] = ALL_TIMES):
    """A clone whose depth has the CFG scale `depth_cfg`, whatever the sampler's cfg, and whose guidance acts
    at the times from interval[0] down to interval[1] alone; other models are refused.
    """
    interval = check_interval(interval)
    network_config(model, "has a depth to guide")
    guided = model.clone()
    # at cfg 1 core skips the negative prompt, which the depth may still need
    guided.set_model_sampler_post_cfg_function(
        partial(guide_depth, depth_cfg=depth_cfg), disable_cfg1_optimization=depth_cfg != 1
    )
    kind = comfy.patcher_extension.WrappersMP.CALC_COND_BATCH
    guided.remove_wrappers_with_key(kind, KEY)  # the last node wins
    if interval != ALL_TIMES:
        guided.add_wrapper_with_key(kind, KEY, partial(predict_in_interval, interval=interval))
    return guided


def predict_in_interval(executor, model, conds, x_in, timestep, model_options, *, interval):
    """A CALC_COND_BATCH wrapper: outside the interval the prompt's prediction stands for all others, so that
    any CFG gives it back.
    """
    begin, end = interval
    if len(conds) < 2 or conds[1] is None or end <= float(timestep.max()) <= begin:
        return executor(model, conds, x_in, timestep, model_options)
    prompted = executor(model, [conds[0], *[None] * (len(conds) - 1)], x_in, timestep, model_options)[0]
    return [prompted] * len(conds)


def guide_depth(args: dict, *, depth_cfg: float) -> Tensor:
    """Core's x0 after CFG (packed, (b, 1, n)) with CFG applied anew to its depth; CFG is linear in x0."""
    if args["uncond"] is None and depth_cfg != 1:
        raise ValueError(
            f"Expected a negative prompt for a depth guidance of {depth_cfg:g}, got a run without one. Use "
            "KSampler or CFGGuider, or set depth_cfg to 1."
        )
    shapes = args["model"].latent_shapes
    image = comfy.utils.unpack_latents(args["denoised"], shapes)[0]
    depth = comfy.utils.unpack_latents(args["cond_denoised"], shapes)[1]
    if depth_cfg != 1:
        away = comfy.utils.unpack_latents(args["uncond_denoised"], shapes)[1]
        depth = away + (depth - away) * depth_cfg
    return comfy.utils.pack_latents([image, depth])[0]
