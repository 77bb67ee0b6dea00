"""What core's nodes can attach to a prompt or a model that a joint network cannot use: refused by name.

Core silently drops what a network does not read; a plausible image then hides that a node had no effect.
"""

from __future__ import annotations

from collections.abc import Iterator

ONE_PROMPT = "a nested latent has no regions. Give each prompt for the whole image"
SEEN = (
    "Expected a prompt without CLIP Vision embeddings, which this network was not trained to read, got one "
    "with them. Remove that node"
)
REASONS = {
    "guidance": (
        "Expected a prompt without a guidance value, for which this network has no input, got one with it "
        "(Flux Guidance attaches one). Remove that node and use the cfg of the KSampler"
    ),
    "unclip_conditioning": SEEN,
    "clip_vision_output": SEEN,
    "control": (
        "Expected a prompt without a ControlNet, since none exists for this network, got one with it. Give "
        "the depth itself, with Depth to Image Latent"
    ),
    "reference_latents": (
        "Expected a prompt without reference images, which this network was not trained to read, got one "
        "with them. Disconnect them, or keep an image with Masked Joint Latent"
    ),
    "concat_latent_image": (
        "Expected a prompt without the conditioning of an inpainting model, which this network does not "
        "need, got one with it. Use Masked Joint Latent"
    ),
    "area": f"Expected a prompt without an area, got one with it: {ONE_PROMPT}",
    "mask": f"Expected a prompt without a mask, got one with it: {ONE_PROMPT}",
    "gligen": f"Expected a prompt without GLIGEN boxes, got one with them: {ONE_PROMPT}",
}

# core's nodes that change CFG itself, by the class whose method does it
ROWS_AND_COLUMNS = (
    "works on the rows and columns of one latent, where a joint latent is an image and a depth packed into "
    "one row"
)
GUIDANCE_CHANGES = {
    "FreSca": ROWS_AND_COLUMNS,
    "LatentApplyOperationCFG": ROWS_AND_COLUMNS,
    "VideoLinearCFGGuidance": "counts the frames of a video, which a joint latent does not have",
    "VideoTriangleCFGGuidance": "counts the frames of a video, which a joint latent does not have",
}


def check_conditioning(conds: dict[str, list[dict]]) -> None:
    """Check every prompt of a run, positive and negative."""
    for prompts in conds.values():
        for prompt in prompts or ():
            for key, reason in REASONS.items():
                if prompt.get(key) is not None:
                    raise ValueError(f"{reason}.")


def check_unconditional(guider) -> None:
    """Refuse all-zero prompt embeddings: the network was trained with the encoding of an empty prompt, never
    with zeros.

    At cfg 1 the negative prompt is not used, so its zeros are harmless.
    """
    width = guider.model_patcher.model.model_config.network.context_in_dim
    unread = getattr(guider, "cfg", None) == 1 and not guider.model_options.get("disable_cfg1_optimization")
    for kind, prompts in guider.conds.items():
        values = [prompt.get("cross_attn") for prompt in prompts or () if not (kind == "negative" and unread)]
        if any(value is not None and value.shape[-1] == width and not value.any() for value in values):
            raise ValueError(
                f"Expected the encoding of an empty text as the unconditional {kind} prompt, got all zeros "
                "(Conditioning Zero Out makes them). Use CLIP Text Encode with nothing in it."
            )


def check_patches(options: dict) -> None:
    """Check the patches inside a network (ModelPatcher.set_model_*_patch and *_replace)."""
    patched = [
        *options.get("patches", ()),
        *(name for replaced in options.get("patches_replace", {}).values() for name in replaced),
    ]
    if patched:
        place = patched[0] if isinstance(patched[0], str) else " ".join(str(part) for part in patched[0])
        raise ValueError(
            f"Expected a model without patches at {place!r}, which a joint network does not have, got one "
            "with them. Remove that node from the model's line (IP-Adapter, FreeU, PAG and the like are "
            "made for other networks)."
        )


def check_options(options: dict, *, image_given: bool) -> None:
    """Check what is set on the model's sampling: guidance changes, context windows, skipped steps."""
    if options.get("context_handler") is not None:
        raise ValueError(
            "Expected a model without Context Windows, which cuts a video into windows of frames, got one "
            "with it; a joint latent has no frames. Remove that node."
        )
    for change in guidance_changes(options):
        maker = getattr(change, "__qualname__", "").split(".")[0]
        if maker in GUIDANCE_CHANGES:
            raise ValueError(
                f"Expected a model without {maker}, got one with it: it {GUIDANCE_CHANGES[maker]}. Remove "
                "that node from the model's line."
            )
    cache = options.get("transformer_options", {}).get("easycache")
    if image_given and getattr(cache, "name", None) == "EasyCache":
        raise ValueError(
            "Expected LazyCache for a fixed image, got EasyCache, which measures how much the image changes "
            "from step to step: it never does. Use LazyCache, which measures the depth as well, or remove "
            "the node."
        )


def guidance_changes(options: dict) -> Iterator:
    """Every function that core will call on the prediction after CFG."""
    single = options.get("sampler_cfg_function")
    yield from [single] if single else []
    for place in ("sampler_pre_cfg_function", "sampler_post_cfg_function"):
        yield from options.get(place, ())
