"""Files of intrinsic VAEs with ComfyUI's (LDM's) or diffusers' tensor names: layout and latent scale."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.weights.files import (
    Header,
    WeightsError,
    describe,
    explain_part,
    read_header,
    read_tensors,
    write_tensors,
)
from .config import CHANNELS, VaeConfig

KIND = "intrinsic VAE"
DIFFUSERS_CLASS = '"_class_name"'  # key in a diffusers config
CONFIG = "config"  # metadata: VaeConfig as JSON
# metadata: the factor that scales raw latents to unit standard deviation, see `vae.latent_scale`
LATENT_SCALE = "latent_scale"
EXPECTED = f"Expected an intrinsic VAE ({CHANNELS} channels in and out)"
REMEDY = "Choose one trained from the base model's own VAE"
FIRST, LAST, CODE = "encoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight"

# (ComfyUI's name, diffusers' name); the levels and blocks of encoder and decoder are mapped separately
PAIRS = (
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
    (".mid.attn_1.q.", ".mid_block.attentions.0.to_q."),
    (".mid.attn_1.k.", ".mid_block.attentions.0.to_k."),
    (".mid.attn_1.v.", ".mid_block.attentions.0.to_v."),
    (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm_out.", ".conv_norm_out."),
)
OLD_PAIRS = tuple(  # diffusers' names before 0.18
    (f".mid.attn_1.{ours}.", f".mid_block.attentions.0.{theirs}.")
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "proj_attn"))
)
STEP = re.compile(r"^(encoder|decoder)\.(down|up)\.(\d+)\.(?:block\.(\d+)\.|(?:downsample|upsample)\.)")
DIFFUSERS_STEP = re.compile(
    r"^(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)\.|(?:downsamplers|upsamplers)\.0\.)"
)


@dataclass(frozen=True)
class IntrinsicVae:
    """A file: tensors under ComfyUI's names, their layout, and the factor to unit standard deviation."""

    state: Mapping[str, Tensor]
    config: VaeConfig
    latent_scale: float

    @property
    def ratio(self) -> float:
        """Factor from raw latents to those that `base_scale` brings to unit standard deviation."""
        return self.latent_scale / self.config.base_scale


def save_intrinsic_vae(
    path: str | os.PathLike, state: Mapping[str, Tensor], config: VaeConfig, *, latent_scale: float
) -> Path:
    """Write weights under ComfyUI's or diffusers' names, with the metadata for `load_intrinsic_vae`."""
    metadata = {CONFIG: config.to_json(), LATENT_SCALE: repr(float(latent_scale))}
    return write_tensors(path, state, metadata, kind=KIND)


def load_intrinsic_vae(path: str | os.PathLike) -> IntrinsicVae:
    """A file with either naming.

    Without metadata the layout is inferred from the shapes, and the scale is the base model's. WeightsError
    describes a wrong file in one sentence.
    """
    header = read_header(path)
    config = find_config(header, str(path))
    text = header.metadata.get(LATENT_SCALE, repr(config.base_scale))
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise WeightsError(
            f"Expected a number above 0 as {LATENT_SCALE} of {path}, got {text!r}. Save the file again."
        )
    state = read_tensors(path)
    named = to_core_names(state)
    if len(named) < len(state):
        raise WeightsError(
            f"Expected each tensor of {path} once, got some under both ComfyUI's and diffusers' names. Keep "
            "one set of weights."
        )
    return IntrinsicVae(named, config, scale)


def find_config(header: Header, what: str) -> VaeConfig:
    """The config in the metadata, else one inferred from the shapes; WeightsError for any other file."""
    levels = count_levels(header.shapes)
    shapes = {core_name(name, levels): shape for name, shape in header.shapes.items()}
    if not {FIRST, LAST, CODE} <= set(shapes) or any(len(shapes[name]) != 4 for name in (FIRST, LAST, CODE)):
        raise WeightsError(f"{EXPECTED} in {what}, got {describe(header)}{explain_part(what)}. {REMEDY}.")
    (width, into, *_), (out, *_) = shapes[FIRST], shapes[LAST]
    if (into, out) != (CHANNELS, CHANNELS):
        raise WeightsError(
            f"{EXPECTED} in {what}, got {describe(header)} with {into} in and {out} out. {REMEDY}."
        )
    try:
        multiples = tuple(
            shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] // width for level in range(levels)
        )
        blocks = sum(
            bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in shapes
        )
        inferred = VaeConfig(width, multiples, blocks, shapes[CODE][0])
    except (KeyError, IndexError, ArithmeticError, ValueError) as error:
        raise WeightsError(
            f"{EXPECTED} in {what}, got an autoencoder of another layout ({error}){explain_part(what)}. "
            f"{REMEDY}."
        ) from error
    return _with_stated_scale(header, inferred, what)


def _with_stated_scale(header: Header, inferred: VaeConfig, what: str) -> VaeConfig:
    """The layout inferred from the shapes with the scale in the metadata; a diffusers config is ignored."""
    if CONFIG not in header.metadata or DIFFUSERS_CLASS in header.metadata[CONFIG]:
        return inferred
    try:
        stated = VaeConfig.from_json(header.metadata[CONFIG])
    except ValueError as error:
        raise WeightsError(
            f"{EXPECTED} in {what}, got an autoencoder of another layout ({error}). {REMEDY}."
        ) from error
    if replace(stated, base_scale=inferred.base_scale) != inferred:
        raise WeightsError(
            f"Expected tensors of the {CONFIG} in the metadata of {what} ({stated}), got those of "
            f"{inferred}. Save the file again."
        )
    return stated


def count_levels(names: Iterable[str]) -> int:
    """Number of resolution levels of the encoder."""
    matches = [STEP.match(name) or DIFFUSERS_STEP.match(name) for name in names]
    return 1 + max((int(match[3]) for match in matches if match and match[1] == "encoder"), default=-1)


def core_name(name: str, levels: int) -> str:
    """ComfyUI's name for a tensor of either naming. The decoder's levels are numbered in reverse order."""
    step = DIFFUSERS_STEP.match(name)
    if step:
        side, way, number, block = step.groups()
        module = f"block.{block}" if block else f"{way}sample"
        name = f"{side}.{way}.{_turn_number(side, number, levels)}.{module}.{name[step.end() :]}"
    for ours, theirs in PAIRS + OLD_PAIRS:
        name = name.replace(theirs, ours)
    return name


def diffusers_name(name: str, levels: int) -> str:
    """The inverse of `core_name`."""
    step = STEP.match(name)
    if step:
        side, way, number, block = step.groups()
        module = f"resnets.{block}" if block else f"{way}samplers.0"
        name = f"{side}.{way}_blocks.{_turn_number(side, number, levels)}.{module}.{name[step.end() :]}"
    for ours, theirs in PAIRS:
        name = name.replace(ours, theirs)
    return name


def _turn_number(side: str, number: str, levels: int) -> int:
    return int(number) if side == "encoder" else levels - 1 - int(number)


def to_core_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of either naming as ComfyUI's AutoencoderKL has them, with 1 x 1 convolutions in attention."""
    levels = count_levels(state)
    named = {core_name(name, levels): value for name, value in state.items()}
    return {
        name: value[:, :, None, None] if ".attn_1." in name and value.dim() == 2 else value
        for name, value in named.items()
    }


def to_diffusers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI's weights as diffusers' AutoencoderKL has them, with linear layers in attention."""
    levels = count_levels(state)
    named = {diffusers_name(name, levels): value for name, value in state.items()}
    return {
        name: value[:, :, 0, 0] if ".attentions.0." in name and value.dim() == 4 else value
        for name, value in named.items()
    }


def fold_scale(state: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """Weights under ComfyUI's names whose latents are `ratio` times as large and decode to the same maps."""
    folded = dict(state)
    for kind, shift in (("weight", 0.0), ("bias", 2 * math.log(ratio))):
        mean, log_variance = state[f"quant_conv.{kind}"].float().chunk(2)
        folded[f"quant_conv.{kind}"] = torch.cat([mean * ratio, log_variance + shift])
    folded[CODE] = state[CODE].float() / ratio
    return folded
