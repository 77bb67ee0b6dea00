"""A CFG scale for the depth alone, through core's hook after its own CFG."""

from __future__ import annotations

from functools import partial

import comfy.utils
from torch import Tensor

from .joint_model import network_config


def with_depth_guidance(model, depth_cfg: float):
    """A clone whose depth has the CFG scale `depth_cfg`, whatever the sampler's cfg; other models are
    refused.
    """
    network_config(model, "has a depth to guide")
    guided = model.clone()
    # at cfg 1 core skips the negative prompt, which the depth may still need
    guided.set_model_sampler_post_cfg_function(
        partial(guide_depth, depth_cfg=depth_cfg), disable_cfg1_optimization=depth_cfg != 1
    )
    return guided


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
