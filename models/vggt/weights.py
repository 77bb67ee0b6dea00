"""VGGT weights files: released tensor names, the config of a file, and errors that name another file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..core.weights.files import KIND as KIND_KEY
from ..core.weights.files import (
    Header,
    WeightsError,
    check_fit,
    describe,
    explain_part,
    fill_module,
    find_wrapper,
)
from ..core.weights.network_files import (
    WITHOUT_FLOAT16,
    PathOrState,
    check_dtypes,
    module_shapes,
    read_renamed,
    read_weights_header,
    write_network,
)
from .config import HEADS, VGGT_1B, VggtConfig
from .network import Vggt

KIND = "VGGT network"
MARKERS = ("aggregator.camera_token", "aggregator.frame_blocks.0.attn.qkv.weight")
TRACKING = "track_head."  # point tracking, which no node uses: left in the file
PREFIXES = ("", "model.", "module.", "_orig_mod.", "vggt.", "module.model.")
Shapes = Mapping[str, tuple[int, ...]]


def load_network(
    path_or_state: PathOrState,
    *,
    config: VggtConfig | None = None,
    operations=torch.nn,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Vggt, VggtConfig]:
    """A network and its configuration from a safetensors file, or from a state dict whose tensors it uses.

    The configuration is the one given, else the file's own, else read off the shapes; heads are those in the
    file. `dtype=None` keeps the file's precision (float32 for float16 and float64); heads are float32 always.
    WeightsError says in one sentence what a wrong file is.
    """
    header, what = read_weights_header(path_or_state)
    names = own_names(header, what)
    check_precisions(header, names, what)
    shapes = {ours: header.shapes[name] for name, ours in names.items()}
    config = config or find_config(header, shapes, what)
    stored = header.dtypes[{ours: name for name, ours in names.items()}[MARKERS[1]]]
    network = Vggt(config, operations=operations, device="meta", dtype=dtype or WITHOUT_FLOAT16[stored])
    check_fit(module_shapes(network), shapes, f"{what}, a {KIND},")
    return fill_module(network, read_renamed(path_or_state, names, what), what=what, device=device), config


def save_network(
    path: str | os.PathLike,
    network: Vggt,
    config: VggtConfig,
    extra_metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    int8: bool = False,
) -> Path:
    """Write a network under the released names, with its config as metadata, cast to `dtype` if given; with
    `int8` its large matrices in eight bits, read as float16."""
    return write_network(path, network, config.to_json(), extra_metadata, kind=KIND, dtype=dtype, int8=int8)


def network_shapes(config: VggtConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, without memory for any."""
    return module_shapes(Vggt(config, device="meta"))


def own_names(
    header: Header, what: str, describe: Callable[[Header], str] = describe
) -> dict[str, str]:
    """Name in the file -> our name, without tracking. WeightsError says what another file is."""
    fitting = [p for p in PREFIXES if all(p + name in header.shapes for name in MARKERS)]
    if not fitting:
        raise WeightsError(_explain_other(header, what, describe))
    prefix = fitting[0]
    kept = [name for name in header.shapes if not name.startswith(prefix + TRACKING)]
    return {name: name.removeprefix(prefix) for name in kept}


def _explain_other(header: Header, what: str, describe: Callable[[Header], str]) -> str:
    if header.metadata.get(KIND_KEY) == KIND and not find_wrapper(header.shapes):
        missing = next(name for name in MARKERS if name not in header.shapes)
        part = explain_part(what) or " It is damaged or one part of several: fetch it again, whole"
        return f"Expected {missing} in {what}, a {KIND}, got none.{part}."
    return (
        f"Expected a {KIND} (tensors {MARKERS[0]} and others), got {describe(header)} in {what}. Choose "
        f"VGGT's file{explain_part(what)}."
    )


def check_precisions(header: Header, names: Mapping[str, str], what: str) -> None:
    """WeightsError for quantized weights."""
    check_dtypes({name: header.dtypes[name] for name in names}, WITHOUT_FLOAT16, what)


def find_config(header: Header, shapes: Shapes, what: str) -> VggtConfig:
    """The configuration a file states in its metadata, else the one its shapes give."""
    try:
        if header.metadata.get(KIND_KEY) == KIND and "config" in header.metadata:
            return VggtConfig.from_json(json.loads(header.metadata["config"]))
        return config_from_shapes(shapes)
    except (ValueError, TypeError, KeyError, IndexError, StopIteration, ArithmeticError) as error:
        reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else error
        raise WeightsError(
            f"Expected the sizes of a whole {KIND} in {what}, got others ({str(reason).rstrip('.')}). Fetch "
            f"it again{explain_part(what)}."
        ) from error


def config_from_shapes(shapes: Shapes) -> VggtConfig:
    """Sizes from tensor shapes. What shapes do not show is VGGT-1B's, in proportion to the depth."""
    width, _, patch, _ = shapes["aggregator.patch_embed.patch_embed.proj.weight"]
    side = math.isqrt(shapes["aggregator.patch_embed.pos_embed"][1] - 1)
    depth = count_blocks(shapes, "aggregator.frame_blocks.")
    head = shapes["aggregator.frame_blocks.0.attn.q_norm.weight"][0]
    heads = tuple(name for name in HEADS if any(key.startswith(f"{name}_head.") for key in shapes))
    dense = next((f"{name}_head." for name in heads if name != "camera"), None)
    given = {}
    if dense:
        given["dpt_features"] = shapes[dense + "scratch.layer1_rn.weight"][0]
        given["dpt_out_channels"] = tuple(shapes[f"{dense}projects.{i}.weight"][0] for i in range(4))
    return replace(
        VGGT_1B,
        img_size=side * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // head,
        mlp_ratio=shapes["aggregator.frame_blocks.0.mlp.fc1.weight"][0] / width,
        num_register_tokens=shapes["aggregator.register_token"][2],
        backbone_depth=count_blocks(shapes, "aggregator.patch_embed.blocks."),
        backbone_num_heads=width // head,
        backbone_mlp_ratio=shapes["aggregator.patch_embed.blocks.0.mlp.fc1.weight"][0] / width,
        # the released 4, 11, 17, 23 of 24
        dpt_layers=tuple(max(0, round(depth * part / 24) - 1) for part in (5, 12, 18, 24)),
        camera_trunk_depth=count_blocks(shapes, "camera_head.trunk.") or VGGT_1B.camera_trunk_depth,
        heads=heads,
        **given,
    )


def count_blocks(shapes: Shapes, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})
