"""What core's nodes can attach to a prompt or a model, and a joint network has no place for: refused by name.

Core drops what a network does not read without a word; a picture that looks right then hides that a node did
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

ONE_PROMPT = "a nested latent has no such place: give each prompt for the whole picture"
SEEN = (
    "What CLIP Vision saw in a picture arrived with the prompt, which this network was not trained to read: "
    "take that node out"
)
REASONS = {
    "guidance": "A guidance value arrived with the prompt (Flux Guidance attaches one), "
    "but this network has no input for it: take that node out and use the cfg of the KSampler",
    "unclip_conditioning": SEEN,
    "clip_vision_output": SEEN,
    "control": "A ControlNet arrived with the prompt, but none is made for this network: "
    "give the depth itself, with Depth to Image Latent",
    "reference_latents": "Reference images arrived with the prompt, which this network was not "
    "trained to read: take them off, or keep a picture with Masked Joint Latent",
    "concat_latent_image": "The conditioning of an inpainting model arrived, but this network needs none: "
    "use Masked Joint Latent",
    "area": f"An area arrived with the prompt, but {ONE_PROMPT}",
    "mask": f"A mask arrived with the prompt, but {ONE_PROMPT}",
    "gligen": f"GLIGEN boxes arrived with the prompt, but {ONE_PROMPT}",
}

# core's nodes that change the guidance itself, by the class in whose method the change is made
ROWS_AND_COLUMNS = (
    "works on the rows and columns of one latent, where a joint latent is an image and a depth packed into "
    "one row"
)
GUIDANCE_CHANGES = {
    "FreSca": ROWS_AND_COLUMNS,
    "LatentApplyOperationCFG": ROWS_AND_COLUMNS,
    "VideoLinearCFGGuidance": "counts the frames of a video, which a joint latent has not",
    "VideoTriangleCFGGuidance": "counts the frames of a video, which a joint latent has not",
}


def check_conditioning(conds: dict[str, list[dict]]) -> None:
    """Look at every prompt of a run, positive and negative."""
    for prompts in conds.values():
        for prompt in prompts or ():
            for key, reason in REASONS.items():
                if prompt.get(key) is not None:
                    raise ValueError(f"{reason}.")


def check_unconditional(guider) -> None:
    """Refuse zeros in a prompt's place: no text is what the network was trained with, and zeros it has never
    seen.

    Where nothing is guided, at cfg 1, the negative prompt is not read, and its zeros do no harm.
    """
    width = guider.model_patcher.model.model_config.network.context_in_dim
    unread = getattr(guider, "cfg", None) == 1 and not guider.model_options.get("disable_cfg1_optimization")
    for kind, prompts in guider.conds.items():
        values = [prompt.get("cross_attn") for prompt in prompts or () if not (kind == "negative" and unread)]
        if any(value is not None and value.shape[-1] == width and not value.any() for value in values):
            raise ValueError(
                f"All zeros arrived as the {kind} prompt (Conditioning Zero Out makes them), but this "
                "network's unconditional is the encoding of an empty text: use CLIP Text Encode with "
                "nothing in it."
            )


def check_patches(options: dict) -> None:
    """Check the patches inside a network (ModelPatcher.set_model_*_patch and *_replace)."""
    wanted = [
        *options.get("patches", ()),
        *(name for places in options.get("patches_replace", {}).values() for name in places),
    ]
    if wanted:
        place = wanted[0] if isinstance(wanted[0], str) else " ".join(str(part) for part in wanted[0])
        raise ValueError(
            f"A node before this one patches {place!r} inside the model, a place that a joint network does "
            "not have: take that node out of the model's line (IP-Adapter, FreeU, PAG and the like are made "
            "for other networks)."
        )


def check_options(options: dict, *, image_given: bool) -> None:
    """Check what is set on the model's sampling: guidance changes, context windows, skipped steps."""
    if options.get("context_handler") is not None:
        raise ValueError(
            "Context Windows cuts a video into windows of frames, and a joint latent has none: take that "
            "node out."
        )
    for change in guidance_changes(options):
        maker = getattr(change, "__qualname__", "").split(".")[0]
        if maker in GUIDANCE_CHANGES:
            raise ValueError(f"{maker} {GUIDANCE_CHANGES[maker]}: take that node out of the model's line.")
    cache = options.get("transformer_options", {}).get("easycache")
    if image_given and getattr(cache, "name", None) == "EasyCache":
        raise ValueError(
            "EasyCache measures how much the image changes from step to step, and here it is given and "
            "never does: use LazyCache, which looks at the depth as well, or take the node out."
        )


def guidance_changes(options: dict) -> Iterator:
    """Every function that core is to call on the guided prediction."""
    single = options.get("sampler_cfg_function")
    yield from [single] if single else []
    for place in ("sampler_pre_cfg_function", "sampler_post_cfg_function"):
        yield from options.get(place, ())
