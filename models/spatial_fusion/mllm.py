"""Keys and values of a language model of transformers; and whether an MLLM is the one that was trained with.

    transformer = load_spatial_transformer("spatial_transformer.safetensors")
    semantic = read_semantic_state(mllm, input_ids, attention_mask, transformer.config)
    view = infer_view(transformer, transformer.config, semantic, (1024, 1024))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SpatialTransformerConfig
from .network import SemanticState

CACHES = ("cache", "past_key_values")  # the output's name, by version of transformers


@dataclass(frozen=True)
class MllmSizes:
    """The sizes of a language model that a spatial transformer depends on."""

    layers: int
    width: int
    kv_heads: int
    head_dim: int


def check_mllm(config: SpatialTransformerConfig, sizes: MllmSizes, what: str) -> None:
    """ValueError unless the MLLM has the sizes of the one that the spatial transformer was trained with."""
    expected = MllmSizes(config.mllm_layers, config.mllm_width, config.kv_heads, config.head_dim)
    if sizes != expected:
        raise ValueError(
            f"Expected {config.described}, as the spatial transformer, got {what} with {sizes.layers} layers "
            f"of width {sizes.width}, {sizes.kv_heads} key heads of {sizes.head_dim}. Load the language "
            "model that it was trained with, or a spatial transformer for this one."
        )


@torch.no_grad()
def read_semantic_state(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, config: SpatialTransformerConfig
) -> SemanticState:
    """Keys and values of the paired layers of transformers' Qwen2.5-VL, or another decoder of its kind.

    input_ids (b, s) and attention_mask (b, s), padded on the right, as its tokenizer gives them.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    lengths = tuple(mask.sum(dim=1).tolist())
    if not all(bool(row[:length].all()) for row, length in zip(mask, lengths)) or not min(lengths):
        raise ValueError(
            "Expected prompts of at least one token that are padded on the right, got another attention "
            "mask. Set padding_side of the tokenizer to right."
        )
    decoder = find_text_model(model)
    sizes = read_sizes(decoder)
    check_mllm(config, sizes, type(decoder).__name__)
    found = decoder(input_ids=input_ids, attention_mask=mask, use_cache=True)
    cache = next((found[name] for name in CACHES if name in found), None)
    keys, values = {}, {}
    for i in sorted(set(config.pairs)):
        layer = cache.layers[i] if cache is not None else None
        shape = tuple(getattr(layer, "keys", torch.empty(0)).shape)
        if shape != (*input_ids.shape[:1], sizes.kv_heads, input_ids.shape[1], sizes.head_dim):
            raise ValueError(
                f"Expected the keys and values of all tokens in the cache of {type(decoder).__name__}, got "
                f"a {type(layer).__name__} in layer {i}. Use a language model with full attention."
            )
        keys[i], values[i] = layer.keys, layer.values
    return SemanticState(keys, values, lengths)


def find_text_model(model: nn.Module) -> nn.Module:
    """The language model without its head in a model of transformers, which may have a vision tower, too."""
    for name in ("model", "language_model"):
        model = getattr(model, name, model)
    if not hasattr(model, "config") or not hasattr(model, "layers"):
        raise ValueError(
            f"Expected a language model of transformers with layers, got {type(model).__name__}. Pass "
            "Qwen2.5-VL."
        )
    return model


def read_sizes(decoder: nn.Module) -> MllmSizes:
    """Of a language model's config; some leave out the width of a head."""
    config = decoder.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return MllmSizes(config.num_hidden_layers, config.hidden_size, config.num_key_value_heads, head)


def join_semantic_states(states: Sequence[SemanticState]) -> SemanticState:
    """Prompts of several states as one, padded on the right."""
    longest = max(max(state.lengths) for state in states)

    def join(name: str, layer: int) -> Tensor:
        tensors = [getattr(state, name)[layer][:, :, :longest] for state in states]
        return torch.cat([F.pad(tensor, (0, 0, 0, longest - tensor.shape[2])) for tensor in tensors])

    keys, values = ({layer: join(name, layer) for layer in states[0].keys} for name in ("keys", "values"))
    return SemanticState(keys, values, tuple(length for state in states for length in state.lengths))


def repeat_prompt(semantic: SemanticState, count: int) -> SemanticState:
    """One prompt for `count` images; ValueError for several prompts of another number."""
    prompts = len(semantic.lengths)
    if prompts == count:
        return semantic
    if prompts != 1:
        raise ValueError(
            f"Expected as many prompts as images, or one of either, got {prompts} prompts and {count} "
            "images. Change one of them."
        )
    keys, values = (
        {layer: tensor.expand(count, -1, -1, -1) for layer, tensor in tensors.items()}
        for tensors in (semantic.keys, semantic.values)
    )
    return SemanticState(keys, values, semantic.lengths * count)
