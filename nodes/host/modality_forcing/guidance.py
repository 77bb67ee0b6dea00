"""Guidance of the depth apart from the image's, through core's hook behind its own guidance."""

from __future__ import annotations

from functools import partial

import comfy.utils
from torch import Tensor

from .joint_model import network_config


def with_depth_guidance(model, depth_cfg: float):
    """A clone whose depth is guided by `depth_cfg`, whatever the sampler's cfg; other models are refused."""
    network_config(model, "has a depth to guide")
    guided = model.clone()
    # at a cfg of 1 core leaves the negative prompt out, which the depth may still need
    guided.set_model_sampler_post_cfg_function(
        partial(guide_depth, depth_cfg=depth_cfg), disable_cfg1_optimization=depth_cfg != 1
    )
    return guided


def guide_depth(args: dict, *, depth_cfg: float) -> Tensor:
    """Core's guided x0 (packed, (b, 1, n)) with its depth guided anew; guidance is linear on x0."""
    if args["uncond"] is None and depth_cfg != 1:
        raise ValueError(
            f"A depth guidance of {depth_cfg:g} needs a negative prompt to lead away from, and this run has "
            "none: use KSampler or CFGGuider, or set depth_cfg to 1."
        )
    shapes = args["model"].latent_shapes
    image = comfy.utils.unpack_latents(args["denoised"], shapes)[0]
    depth = comfy.utils.unpack_latents(args["cond_denoised"], shapes)[1]
    if depth_cfg != 1:
        away = comfy.utils.unpack_latents(args["uncond_denoised"], shapes)[1]
        depth = away + (depth - away) * depth_cfg
    return comfy.utils.pack_latents([image, depth])[0]
