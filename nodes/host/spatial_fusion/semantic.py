"""Keys and values of a CLIP's language model, recorded while core encodes a prompt, which stays bit-equal.

Core's attention returns keys, after rotary, and values if it is given a cache, even an empty one. Hooks give
it one for the length of a `with` block, in the layers that the spatial transformer is paired with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import comfy.model_management
import comfy.text_encoders.llama
import torch
from einops import rearrange
from torch import Tensor, nn

from ....models.spatial_fusion.config import SpatialTransformerConfig
from ....models.spatial_fusion.mllm import MllmSizes, check_mllm, join_semantic_states
from ....models.spatial_fusion.network import SemanticState
from ..shared.last_resort import describe
from ..shared.memory import explain_full_memory

REMEDY = "Load OmniGen2's text encoder, Qwen2.5-VL-3B, with Load CLIP (type omnigen2)."
WEIGHTED = (
    "Weights of words, as in (red:1.4), act on the encoding alone, not on keys and values: for the depth all "
    "words count alike."
)
Recorded = dict[int, tuple[Tensor, Tensor]]


def encode_prompts(
    clip, prompts: Sequence[str], config: SpatialTransformerConfig
) -> tuple[SemanticState, list[str]]:
    """Keys and values of the paired layers for each prompt, and notes."""
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            which = "" if len(prompts) == 1 else f" as prompt {i + 1} of {len(prompts)}"
            raise ValueError(
                f"Expected a prompt, got {'an empty one' if isinstance(prompt, str) else describe(prompt)}"
                f"{which}. Describe the image whose depth is inferred."
            )
    decoder = find_decoder(clip)
    check_mllm(config, read_core_sizes(decoder), type(clip.cond_stage_model).__name__)
    states, notes = [], []
    for prompt in prompts:
        tokens = clip.tokenize(prompt)
        notes += [WEIGHTED] if has_weights(tokens) and WEIGHTED not in notes else []
        states.append(encode_prompt(clip, tokens, decoder, sorted(set(config.pairs))))
    return join_semantic_states(states), notes


def encode_prompt(clip, tokens, decoder: nn.Module, layers: Sequence[int]) -> SemanticState:
    """The state of one prompt; its encoding is core's own, and dropped."""
    device = clip.patcher.load_device

    def work() -> str:
        return f"encode a prompt with {type(clip.cond_stage_model).__name__}"

    with (
        explain_full_memory(device, work, "shorten the prompt, or use a smaller file of the encoder"),
        recorded(decoder, layers) as found,
    ):
        clip.encode_from_tokens(tokens)
    # the first row is the prompt; a weighted one has a second row, of an empty prompt
    keys, values = ({i: found[i][part][:1] for i in layers} for part in (0, 1))
    return SemanticState(keys, values, (keys[layers[0]].shape[2],))


def find_decoder(clip) -> nn.Module:
    """The language model in a CLIP whose attention can be read; ValueError names what was found instead."""
    holder = getattr(clip, "cond_stage_model", None)
    if not isinstance(holder, nn.Module):
        raise ValueError(f"Expected a CLIP with a language model, got {describe(clip)}. {REMEDY}")
    family = comfy.text_encoders.llama
    decoders = [module for module in holder.modules() if isinstance(module, family.Llama2_)]
    if len(decoders) != 1:
        number = len(decoders) or "none"
        raise ValueError(
            f"Expected a CLIP with one language model of ComfyUI's Llama class, got {number} in "
            f"{type(holder).__name__}. {REMEDY}"
        )
    for i, layer in enumerate(decoders[0].layers):
        attention = getattr(layer, "self_attn", None)
        if type(attention) is not family.Attention:
            kind = type(layer if attention is None else attention).__name__
            raise ValueError(
                f"Expected the attention of ComfyUI's Llama class in every layer, got {kind} in layer {i} of "
                f"{type(decoders[0]).__name__}, whose keys cannot be read. {REMEDY}"
            )
    return decoders[0]


def read_core_sizes(decoder: nn.Module) -> MllmSizes:
    """Of core's language model."""
    attention = decoder.layers[0].self_attn
    return MllmSizes(
        len(decoder.layers), attention.hidden_size, attention.num_kv_heads, attention.head_dim
    )


def has_weights(tokens) -> bool:
    """Whether core's tokens, (token, weight, ...) in lists by encoder, have a weight other than 1."""
    return any(entry[1] != 1.0 for rows in tokens.values() for row in rows for entry in row)


@contextlib.contextmanager
def recorded(decoder: nn.Module, layers: Iterable[int]) -> Iterator[Recorded]:
    """While open, (keys, values) of these layers at each encoding, (b, g, s, d); Cancel ends an encoding."""
    found: Recorded = {}

    def ask(module: nn.Module, args: tuple, kwargs: dict):
        comfy.model_management.throw_exception_if_processing_interrupted()
        is_plain = "past_key_value" in kwargs and kwargs["past_key_value"] is None
        return (args, {**kwargs, "past_key_value": []}) if is_plain else None

    def keep(i: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output) -> None:
            given = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            found[i] = tuple(given[:2]) if given else project_keys(module, kwargs)

        return hook

    with contextlib.ExitStack() as handles:
        for i in layers:
            attention = decoder.layers[i].self_attn
            handles.callback(attention.register_forward_pre_hook(ask, with_kwargs=True).remove)
            handles.callback(attention.register_forward_hook(keep(i), with_kwargs=True).remove)
        yield found


def project_keys(attention: nn.Module, given: dict) -> tuple[Tensor, Tensor]:
    """Keys and values computed once more, for an attention that does not return them."""
    x, groups = given["hidden_states"], attention.num_kv_heads
    if attention.merged_qkv:
        shared = attention.kv_size
        k, v = attention.qkv_proj(x).split((attention.inner_size, shared, shared), dim=-1)[1:]
    else:
        k, v = attention.k_proj(x), attention.v_proj(x)
    k, v = (rearrange(part, "b s (g d) -> b g s d", g=groups) for part in (k, v))
    k = k if attention.k_norm is None else attention.k_norm(k)
    return comfy.text_encoders.llama.apply_rope(k, k, given["freqs_cis"])[1], v


def to_device(semantic: SemanticState, device: torch.device, dtype: torch.dtype) -> SemanticState:
    """The same state where, and as, the spatial transformer computes."""
    keys, values = (
        {i: tensor.to(device, dtype) for i, tensor in tensors.items()}
        for tensors in (semantic.keys, semantic.values)
    )
    return SemanticState(keys, values, semantic.lengths)
