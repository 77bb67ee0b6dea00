"""Other nodes that cannot work on an image beside its maps, refused by name before anything is sampled.

Core's samplers see the images and their maps as one batch. Most nodes treat every latent of a batch alike and by itself; those below do
not, and would change the image even at weight 0, or stop in the middle with an error that names nobody.
"""

from __future__ import annotations

from collections.abc import Iterator

from .hooks import SHARE

SAMPLERS = {
    "dpm_adaptive": "chooses its steps by all latents together, so the maps would change the image even at weight 0",
    "lcm_upscale": "resizes one latent on the way",
    "ar_video": "works on the frames of a video",
}
TOGETHER = "measures all latents of a batch together, so the maps would change the image even at weight 0"
AGAIN = "samples again with self-attention of its own, in a layer where the image looks at its maps"
NODES = {  # by the class in which a node's function, cache or guider is made: the node's title, and what it does
    "Guider_PerpNeg": ("Perp-Neg Guider", TOGETHER),
    "PerpNeg": ("Perp-Neg", TOGETHER),
    "Mahiro": ("Positive-Biased Guidance (Mahiro)", TOGETHER),
    "EasyCacheHolder": ("EasyCache", TOGETHER),
    "LazyCacheHolder": ("LazyCache", TOGETHER),
    "TemporalScoreRescaling": ("TSR - Temporal Score Rescaling", "takes one noise level, so one latent only"),
    "HyperTile": ("HyperTile", "cuts the queries of self-attention into tiles, which are no longer those of an image and its maps"),
    "PerturbedAttentionGuidance": ("Perturbed-Attention Guidance (PAG)", AGAIN),
    "SelfAttentionGuidance": ("Self-Attention Guidance (SAG)", AGAIN),
}
LISTS = ("sampler_pre_cfg_function", "sampler_post_cfg_function")


def check_nodes(guider, sampler, *, share_image_loras: bool) -> None:
    """Raises ValueError with the name of the first sampler, node or prompt that does not go with a pair."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_").removesuffix("_function")
    if name in SAMPLERS:
        raise ValueError(f"The sampler {name} {SAMPLERS[name]}: choose euler, dpmpp_2m or another.")
    for made_in in makers(guider):
        if made_in in NODES:
            title, does = NODES[made_in]
            raise ValueError(f"{title} {does}: take that node out of the model's line.")
    if not share_image_loras and any("hooks" in prompt for prompts in guider.conds.values() for prompt in prompts or ()):
        raise ValueError(f"A prompt arrived with hooks (scheduled LoRAs), which work on all rows alike: use Load LoRA instead, {SHARE}.")


def makers(guider) -> Iterator[str]:
    """The class of the guider, and those in which what was put into its model was made."""
    options = guider.model_options
    inner = options.get("transformer_options", {})
    functions = [function for kind in LISTS for function in options.get(kind, ())]
    functions += [function for patches in inner.get("patches", {}).values() for function in patches]
    functions.append(options.get("sampler_cfg_function"))
    yield from (getattr(function, "__qualname__", "").partition(".")[0] for function in functions)
    yield from (type(thing).__name__ for thing in (guider, inner.get("easycache")))
