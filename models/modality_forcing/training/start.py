"""Initial weights of a training run: random, or from a text-to-image base."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from ..config import ModalityForcingConfig
from ..network import ModalityForcing


def init_weights(network: ModalityForcing, generator: Generator) -> None:
    """Initial weights without a base: every block is the identity, both outputs are 0."""
    for name, parameter in network.named_parameters():
        init_parameter(name, parameter, generator)


@torch.no_grad()
def init_parameter(name: str, parameter: Tensor, generator: Generator) -> None:
    if name.endswith("norm.scale"):
        parameter.fill_(1.0)
    elif (
        parameter.ndim < 2 or "modulation" in name or name.startswith(("final_layer.", "depth_final_layer."))
    ):
        parameter.zero_()
    else:
        drawn = torch.empty(parameter.shape)
        nn.init.trunc_normal_(drawn, std=parameter.shape[1] ** -0.5, a=-2, b=2, generator=generator)
        parameter.copy_(drawn)


@torch.no_grad()
def init_from_text_to_image(
    network: ModalityForcing, base: Mapping[str, Tensor], generator: Generator
) -> None:
    """The paper's initialization: image and text streams from `base` (our names), the depth stream of every
    double block a copy of the image's, and likewise its modulations; depth projections, depth timestep
    embedders, decoder, head and cross embedders random, cross alphas 0.
    """
    state = network.state_dict()
    unknown = sorted(set(base) - set(state))
    if unknown:
        raise ValueError(
            f"Expected text-to-image weights of this network, got {len(unknown)} tensors that it does not "
            f"have, the first {unknown[0]}. Give the base of the recipe's preset."
        )
    for name, own in state.items():
        of_image = name.replace(".depth_", ".img_").replace("modulation_depth.", "modulation_img.")
        source = name if name in base else of_image
        source = source.replace("single_stream_modulation_img.", "single_stream_modulation.")
        if source in base:
            own.copy_(base[source])
        else:
            init_parameter(name, own, generator)


@torch.no_grad()
def widen_depth_head(network: ModalityForcing, config: ModalityForcingConfig) -> ModalityForcing:
    """A network of `config` with these weights, whose depth head computes what it computed: the weights of a
    token are the center of the wider kernel, its neighbors' are 0."""
    old, state = network.config.depth_head_kernel, dict(network.state_dict())
    if old > config.depth_head_kernel:
        raise ValueError(
            f"Expected weights with a depth_head_kernel of at most {config.depth_head_kernel}, got {old}. "
            f"Write {old} into the recipe's model.config."
        )
    name = "depth_final_layer.linear.weight"
    kernel = rearrange(state[name], "o (c p q) -> o c p q", p=old, q=old)
    margin = (config.depth_head_kernel - old) // 2
    state[name] = rearrange(F.pad(kernel, (margin,) * 4), "o c p q -> o (c p q)").contiguous()
    wide = ModalityForcing(config, dtype=torch.float32)
    wide.load_state_dict(state)
    return wide
