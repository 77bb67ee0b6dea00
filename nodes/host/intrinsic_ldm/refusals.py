"""Refusal, by name and before sampling, of samplers and nodes that cannot process an image with its maps.

Core's samplers process the images and their maps as one batch. Most nodes treat the entries of a batch
independently. Those below do not: they would change the image even at w = 0, or fail during sampling with
an error that names no node.
"""

from __future__ import annotations

from collections.abc import Iterator

from .hooks import SHARE

SAMPLERS = {
    "dpm_adaptive": (
        "chooses its steps by all latents together, so the maps would change the image even at weight 0"
    ),
    "lcm_upscale": "resizes one latent on the way",
    "ar_video": "works on the frames of a video",
}
TOGETHER = "measures all latents of a batch together, so the maps would change the image even at weight 0"
AGAIN = "samples again with self-attention of its own, in a layer where the image looks at its maps"
# class that defines a node's function, cache or guider -> (the node's title, why it is refused)
NODES = {
    "Guider_PerpNeg": ("Perp-Neg Guider", TOGETHER),
    "PerpNeg": ("Perp-Neg", TOGETHER),
    "Mahiro": ("Positive-Biased Guidance (Mahiro)", TOGETHER),
    "EasyCacheHolder": ("EasyCache", TOGETHER),
    "LazyCacheHolder": ("LazyCache", TOGETHER),
    "TemporalScoreRescaling": ("TSR - Temporal Score Rescaling", "takes one noise level, so one latent only"),
    "HyperTile": (
        "HyperTile",
        "cuts the queries of self-attention into tiles, which are no longer those of an image and its maps",
    ),
    "PerturbedAttentionGuidance": ("Perturbed-Attention Guidance (PAG)", AGAIN),
    "SelfAttentionGuidance": ("Self-Attention Guidance (SAG)", AGAIN),
}
LISTS = ("sampler_pre_cfg_function", "sampler_post_cfg_function")


def check_nodes(guider, sampler, *, share_image_loras: bool) -> None:
    """Raise ValueError for the first sampler, node or prompt that cannot be used in coupled sampling."""
    name = (
        getattr(getattr(sampler, "sampler_function", None), "__name__", "")
        .removeprefix("sample_")
        .removesuffix("_function")
    )
    if name in SAMPLERS:
        raise ValueError(f"The sampler {name} {SAMPLERS[name]}: choose euler, dpmpp_2m or another.")
    for made_in in makers(guider):
        if made_in in NODES:
            title, does = NODES[made_in]
            raise ValueError(f"{title} {does}: take that node out of the model's line.")
    if not share_image_loras and any(
        "hooks" in prompt for prompts in guider.conds.values() for prompt in prompts or ()
    ):
        raise ValueError(
            "A prompt arrived with hooks (scheduled LoRAs), which work on all rows alike: use Load LoRA "
            f"instead, {SHARE}."
        )


def makers(guider) -> Iterator[str]:
    """Names of the guider's class and of the classes that define the functions patched into its model."""
    options = guider.model_options
    inner = options.get("transformer_options", {})
    functions = [function for kind in LISTS for function in options.get(kind, ())]
    functions += [function for patches in inner.get("patches", {}).values() for function in patches]
    functions.append(options.get("sampler_cfg_function"))
    yield from (getattr(function, "__qualname__", "").partition(".")[0] for function in functions)
    yield from (type(thing).__name__ for thing in (guider, inner.get("easycache")))
