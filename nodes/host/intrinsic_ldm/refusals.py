"""Refusal, by name and before sampling, of samplers and nodes that cannot process an image with its maps.

Core's samplers process the images and their maps as one batch. Most nodes treat the entries of a batch
independently. Those below do not: they would change the image even at w = 0, or fail during sampling with an
error that does not name the node.
"""

from __future__ import annotations

from collections.abc import Iterator

from .hooks import SHARE

SAMPLERS = {
    "dpm_adaptive": (
        "chooses its steps by the error of all latents, so the maps would change the image even at weight 0"
    ),
    "lcm_upscale": "resizes a single latent during sampling",
    "ar_video": "works on the frames of a video",
}
TOGETHER = "computes statistics of a whole batch, so the maps would change the image even at weight 0"
AGAIN = "samples again with its own self-attention, in a layer where the image attends to its maps"
# class that defines a node's function, cache or guider -> (the node's title, why it is refused)
NODES = {
    "Guider_PerpNeg": ("Perp-Neg Guider", TOGETHER),
    "PerpNeg": ("Perp-Neg", TOGETHER),
    "Mahiro": ("Positive-Biased Guidance (Mahiro)", TOGETHER),
    "EasyCacheHolder": ("EasyCache", TOGETHER),
    "LazyCacheHolder": ("LazyCache", TOGETHER),
    "TemporalScoreRescaling": (
        "TSR - Temporal Score Rescaling",
        "takes a single noise level, so a single latent",
    ),
    "HyperTile": (
        "HyperTile",
        "splits the queries of self-attention into tiles, which no longer belong to an image and its maps",
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
        raise ValueError(
            "Expected a sampler that treats the entries of a batch independently, got "
            f"{name}, which {SAMPLERS[name]}. Choose euler, dpmpp_2m or another."
        )
    for owner in find_owners(guider):
        if owner in NODES:
            title, reason = NODES[owner]
            raise ValueError(
                "Expected nodes that treat the entries of a batch independently, got "
                f"{title}, which {reason}. Remove it from the model's chain."
            )
    if not share_image_loras and any(
        "hooks" in prompt for prompts in guider.conds.values() for prompt in prompts or ()
    ):
        raise ValueError(
            "Expected prompts without hooks, got scheduled LoRAs, which act on all rows. Use Load LoRA "
            f"instead, {SHARE}."
        )


def find_owners(guider) -> Iterator[str]:
    """Names of the guider's class and of the classes that define the functions patched into its model."""
    options = guider.model_options
    inner = options.get("transformer_options", {})
    functions = [function for kind in LISTS for function in options.get(kind, ())]
    functions += [function for patches in inner.get("patches", {}).values() for function in patches]
    functions.append(options.get("sampler_cfg_function"))
    yield from (getattr(function, "__qualname__", "").partition(".")[0] for function in functions)
    yield from (type(thing).__name__ for thing in (guider, inner.get("easycache")))
