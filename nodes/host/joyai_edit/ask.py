"""Questions about images to the language model inside a Qwen3-VL text encoder, on core's CLIP.

Core's own text generation runs JoyImage's encoder without M-RoPE positions and DeepStack features, and its
answers are wrong without an error. Core's class for plain Qwen3-VL has both, and takes any encoder of that
network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.text_encoders.qwen3vl
import torch
from torch import Tensor

from ....models.core.pictures import HAS_ALPHA, NO_ALPHA, read_pictures
from ....models.core.weights.header import read_header
from ....models.joyai_edit.question import (
    IMAGE_PAD,
    check_question,
    count_image_tokens,
    fit_image,
    fit_size,
    write_chat,
)
from ..shared.memory import explain_full_memory

GREEDY = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
REMEDY = "Load JoyImage's encoder, Qwen3-VL-8B with its vision tower, with Load CLIP (type joyimage)."


def ask_about(
    clip, images: Mapping[str, Any], question: str, *, sampling: Mapping, max_tokens: int, per_image: int
) -> tuple[str, list[str]]:
    """The answer to a question about images, in the order of their sockets, and notes."""
    question = check_question(question)
    views, notes = read_views(images, per_image)
    encoder = find_encoder(clip)
    check_head(clip, encoder.transformer)
    tokens = tokenize_chat(clip, write_chat(question, len(views)), views)
    prompt = len(tokens) - len(views) + sum(count_image_tokens(*view.shape[1:3]) for view in views)
    check_length(encoder.transformer, prompt, max_tokens, len(views))
    choice = {name: value for name, value in sampling.items() if name != "decoding"}
    options = GREEDY if not choice else {"do_sample": True, **choice}
    found = generate(clip, encoder, tokens, prompt=prompt, max_tokens=max_tokens, options=options)
    if len(found) == max_tokens and found[-1] not in encoder.transformer.model.config.stop_tokens:
        notes.append(f"The answer was cut off after {max_tokens} tokens: raise max_tokens to read on.")
    answer = clip.decode(found).strip()
    return answer, notes + ([] if answer else ["The model gave an empty answer."])


def read_views(images: Mapping[str, Any], per_image: int) -> tuple[list[Tensor], list[str]]:
    """Each image of each socket as (1, h, w, 3) at the size that the vision tower reads, and notes."""
    views, notes = [], []
    for socket, batch in (images or {}).items():
        if batch is None:
            continue
        found = check_images(socket, batch)
        notes += [f"{socket}: {NO_ALPHA if note == HAS_ALPHA else note}" for note in found.notes]
        (height, width), fitted = found.rgb.shape[1:3], fit_size(*found.rgb.shape[1:3], per_image)
        if fitted[0] * fitted[1] < 0.9 * height * width:
            notes.append(
                f"{socket}: {width} x {height} pixels were scaled down to {fitted[1]} x {fitted[0]} "
                f"({count_image_tokens(*fitted)} tokens)."
            )
        views += [fit_image(found.rgb[index : index + 1], per_image) for index in range(len(found.rgb))]
    if not views:
        raise ValueError(
            "Expected at least one image, got none. Wire the image, and views of it, to images."
        )
    return views, notes


def check_images(socket: str, batch: Any):
    """A socket's batch as colors in [0, 1]; ValueError for another type, an empty batch, NaN or infinity."""
    if not isinstance(batch, Tensor):
        raise ValueError(f"Expected an IMAGE at {socket}, got {type(batch).__name__}. Wire an image to it.")
    if batch.numel() == 0:
        raise ValueError(
            f"Expected an image at {socket}, got an empty batch {tuple(batch.shape)}. Check the node "
            "before it."
        )
    broken = int((~torch.isfinite(batch)).sum()) if batch.is_floating_point() else 0
    if broken:
        raise ValueError(
            f"Expected finite values in {socket}, got {broken} that are NaN or infinite, of {batch.numel()}. "
            "Check the sampling or the VAE that made it."
        )
    try:
        return read_pictures(batch)
    except ValueError as error:
        raise ValueError(f"{socket}: {error}") from error


def find_encoder(clip):
    """The text encoder of a CLIP; ValueError if it is not a Qwen3-VL with its vision tower."""
    holder = getattr(clip, "cond_stage_model", None)
    encoder = getattr(holder, str(getattr(holder, "clip", "")), None)
    network = getattr(encoder, "transformer", None)
    if not isinstance(network, comfy.text_encoders.qwen3vl.Qwen3VL):
        kind = type(network or holder or clip).__name__
        raise ValueError(f"Expected the CLIP of a Qwen3-VL with vision, got {kind}. {REMEDY}")
    return encoder


def check_head(clip, network) -> None:
    """ValueError where the language model cannot generate: the file was saved for encoding alone.

    Core loads such a file without an error and leaves the head's weights uninitialized or zero.
    """
    config = network.model.config
    if not config.lm_head and config.final_norm:
        return  # the head is the embedding's own matrix
    files = list_encoder_files(clip)
    missing = [os.path.basename(file) for file in files if not has_head(file)]
    weight = getattr(getattr(network.model, "lm_head", None), "weight", None)
    if not config.lm_head or (files and len(missing) == len(files)):
        where = f"{missing[0] if missing else type(network).__name__} without one"
    elif weight is None or not bool(weight[:1].float().any()):
        where = "an empty one"
    else:
        return
    raise ValueError(
        "Expected a text encoder with its language head (lm_head.weight), which writes the answer, got "
        f"{where}: it can encode prompts but not answer. Load the whole Qwen3-VL-8B file of JoyAI-Image."
    )


def list_encoder_files(clip) -> list[str]:
    """The safetensors files that core loaded a CLIP from, if core recorded them."""
    recipe = getattr(getattr(clip, "patcher", None), "cached_patcher_init", None)
    named = recipe[1][0] if recipe and recipe[1] else ()
    named = [named] if isinstance(named, str) else named
    paths = named if isinstance(named, Sequence) else ()
    return [path for path in paths if isinstance(path, str) and path.endswith(".safetensors")]


def has_head(path: str) -> bool:
    return any(name.endswith("lm_head.weight") for name in read_header(path).shapes)


def tokenize_chat(clip, text: str, views: Sequence[Tensor]) -> list[int | dict]:
    """Token ids, with the image itself, which core embeds, in place of every image token."""
    inner = getattr(clip.tokenizer, clip.tokenizer.clip).tokenizer
    waiting = iter(views)
    return [
        {"type": "image", "data": next(waiting), "original_type": "image"} if token == IMAGE_PAD else token
        for token in inner(text)["input_ids"]
    ]


def check_length(network, prompt: int, max_tokens: int, images: int) -> None:
    """ValueError where prompt and answer exceed the model's position embeddings."""
    most = network.model.config.max_position_embeddings
    if prompt + max_tokens > most:
        raise ValueError(
            f"Expected at most {most} tokens, got {prompt + max_tokens}: {prompt} of {images} images and the "
            f"question, {max_tokens} for the answer. Lower tokens_per_image or max_tokens, or wire fewer "
            "images."
        )


def generate(clip, encoder, tokens, *, prompt: int, max_tokens: int, options: Mapping) -> list[int]:
    """Token ids of the answer, from core's generation loop and with its progress bar."""
    holder, device = clip.cond_stage_model, clip.patcher.load_device
    need = memory_needed(encoder.transformer, prompt, max_tokens, device)
    comfy.model_management.load_models_gpu([clip.patcher], memory_required=need)
    holder.reset_clip_options()
    holder.set_clip_options({"layer": None})
    holder.set_clip_options({"execution_device": device})

    def work() -> str:
        return f"answer a question of {prompt} tokens"

    remedies = "lower tokens_per_image or max_tokens, or wire fewer images"
    options = {"min_p": 0.0, "repetition_penalty": 1.0, **options}
    with (
        explain_full_memory(device, work, remedies),
        comfy.model_management.cuda_device_context(device),
        stopping_at_cancel(encoder.transformer),
    ):
        run = comfy.text_encoders.qwen3vl.Qwen3VLClipModel.generate
        return run(encoder, [[(token, 1.0) for token in tokens]], max_length=max_tokens, **options)


def memory_needed(network, prompt: int, max_tokens: int, device) -> int:
    """Bytes beside the weights: KV cache, causal mask, and activations of one layer."""
    config, vision = network.model.config, network.visual
    size = 2 if comfy.model_management.should_use_bf16(device) else 4
    width = config.num_key_value_heads * config.head_dim
    cache = 2 * config.num_hidden_layers * width * (prompt + max_tokens)
    layer = prompt * (8 * config.hidden_size + 3 * config.intermediate_size)
    patches = prompt * vision.spatial_merge_unit  # in float32; the four-fold MLP is the widest
    return size * (cache + 2 * prompt**2 + layer) + 4 * patches * 12 * vision.hidden_size


@contextlib.contextmanager
def stopping_at_cancel(network) -> Iterator[None]:
    """Forward hooks on each layer of the language model and vision tower that end the run after Cancel."""

    def check(*_) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    layers = (*network.model.layers, *network.visual.blocks)
    handles = [layer.register_forward_pre_hook(check) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
