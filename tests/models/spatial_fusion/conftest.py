"""A small random spatial transformer, with numbers large enough for errors to show."""

import dataclasses

import pytest
import torch

from spatialweave.models.spatial_fusion.config import find_transformer_preset
from spatialweave.models.spatial_fusion.network import SemanticState, SpatialTransformer

SMALL = dataclasses.replace(
    find_transformer_preset("tiny"), mllm="small", mllm_layers=6, mllm_width=48, kv_heads=2, head_dim=16,
    mrope_section=(2, 3, 3), layers=4, width=24, heads=4, ffn_width=40, queries_side=3, encoder_width=16,
    encoder_table_side=3, dpt_features=8, dpt_out_channels=(8, 8, 8, 8),
)  # fmt: skip


def build_transformer(seed=0, dtype=torch.float32, **changes):
    config = dataclasses.replace(SMALL, **changes)
    network = SpatialTransformer(config, dtype=dtype).train(False).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if name == "queries":
            value.normal_(0, 1, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("weight", "gamma")):
            value.normal_(1, 0.1, generator=generator)
        else:
            value.normal_(0, 0.1, generator=generator)
    return network


def draw_semantic(config, lengths, seed=1, dtype=torch.float32):
    """Random keys and values of prompts with these numbers of tokens; padding is NaN: none is read."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), config.kv_heads, max(lengths), config.head_dim)

    def draw():
        found = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for row, length in enumerate(lengths):
            found[row, :, length:] = float("nan")
        return found

    keys, values = ({layer: draw() for layer in sorted(set(config.pairs))} for _ in range(2))
    return SemanticState(keys, values, tuple(lengths))


@pytest.fixture
def build():
    return build_transformer


@pytest.fixture
def draw():
    return draw_semantic
