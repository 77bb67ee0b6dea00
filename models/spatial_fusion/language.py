"""The tiny system's language model: its file, its decoder of transformers, and the words that it reads.

    sizes, state = read_language("tiny_language.safetensors")
    decoder = fill_language(sizes, state)
    ids = torch.tensor(tokenize_words(["a red ball to the left of a blue box"]))
    semantic = read_semantic_state(decoder, ids, None, transformer.config)

Tensor names are those of Qwen2 in transformers and, behind `model.`, of ComfyUI's language models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.weights.files import check_fit, describe, read_header, read_tensors, write_tensors
from ..core.weights.header import Header
from ..core.weights.network_files import check_dtypes
from ..tiny.text import PAD, TOKENS, tokenize
from ..tiny.vocabulary import VOCABULARY
from .config import LanguageSizes, SpatialTransformerConfig
from .weights import CONFIG, DTYPES, read_stated_config

LANGUAGE_KIND = "tiny language model"
LANGUAGE_FILE = "tiny_language.safetensors"  # what its training writes, in its output folder


def size_language(config: SpatialTransformerConfig) -> LanguageSizes:
    """The language model over the tiny words that a spatial transformer of this config expects."""
    return LanguageSizes(
        vocab_size=len(VOCABULARY) + 2, hidden_size=config.mllm_width,
        intermediate_size=2 * config.mllm_width, num_hidden_layers=config.mllm_layers,
        num_attention_heads=max(1, config.mllm_width // config.head_dim),
        num_key_value_heads=config.kv_heads, head_dim=config.head_dim, rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
    )  # fmt: skip


def make_language(sizes: LanguageSizes) -> nn.Module:
    """A Qwen2 of transformers, not yet initialized as it should be."""
    import transformers

    values = sizes.to_json()
    theta = values.pop("rope_theta")
    config = transformers.Qwen2Config(
        **values, max_position_embeddings=TOKENS, pad_token_id=PAD, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )  # fmt: skip
    return transformers.Qwen2Model(config)


def fill_language(sizes: LanguageSizes, state: Mapping[str, Tensor]) -> nn.Module:
    """The decoder of a file in float32, for inference."""
    decoder = make_language(sizes)
    decoder.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    return decoder.train(False).requires_grad_(False)


def save_language(
    path: str | os.PathLike, sizes: LanguageSizes, state: Mapping[str, Tensor], *, int8: bool = True
) -> Path:
    """Write a language model with its sizes as metadata, in float16, with `int8` matrices in eight bits."""
    metadata = {CONFIG: json.dumps(sizes.to_json()), "licence": "Apache-2.0"}
    half = {name: value.to(torch.float16) for name, value in state.items()}
    return write_tensors(path, half, metadata, kind=LANGUAGE_KIND, int8=int8)


def read_language(
    path: str | os.PathLike, describe: Callable[[Header], str] = describe
) -> tuple[LanguageSizes, dict[str, Tensor]]:
    """Sizes and tensors of a file; WeightsError says what another file is."""
    header = read_header(path)
    sizes = read_stated_config(header, str(path), LANGUAGE_KIND, LanguageSizes.from_json, describe)
    check_fit(language_shapes(sizes), header.shapes, f"{path}, a {LANGUAGE_KIND},")
    check_dtypes(header.dtypes, DTYPES, str(path))
    return sizes, dict(read_tensors(path))


def language_shapes(sizes: LanguageSizes) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by name."""
    width, wide = sizes.hidden_size, sizes.intermediate_size
    inner = sizes.num_attention_heads * sizes.head_dim
    shared = sizes.num_key_value_heads * sizes.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
        "self_attn.o_proj.weight": (width, inner), "mlp.gate_proj.weight": (wide, width),
        "mlp.up_proj.weight": (wide, width), "mlp.down_proj.weight": (width, wide),
    }  # fmt: skip
    for name, rows in (("q", inner), ("k", shared), ("v", shared)):
        layer[f"self_attn.{name}_proj.weight"] = (rows, width)
        layer[f"self_attn.{name}_proj.bias"] = (rows,)
    shapes = {"embed_tokens.weight": (sizes.vocab_size, width), "norm.weight": (width,)}
    for i in range(sizes.num_hidden_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def tokenize_words(texts: Sequence[str]) -> list[list[int]]:
    """The tiny words' token ids of each text, without padding."""
    rows: list[list[int]] = tokenize(list(texts)).tolist()
    return [[token for token in row if token != PAD] for row in rows]
