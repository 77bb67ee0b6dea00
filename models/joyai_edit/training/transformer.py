"""The frozen JoyImage network from local files, as diffusers' module: whole, or sharded over processes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.text_files import read_json_object, show_path
from ...core.training.sharding import make_mesh, shard_unit
from ...core.weights.files import check_fit, describe
from ...core.weights.header import Header, read_header
from ...core.weights.mapped import map_tensors

log = logging.getLogger("spatialweave.training")
THETA = 10000  # of the released weights; the class's own default is another
HEAD = 128  # width of an attention head, whose rotary axes are ROPE
ROPE = (16, 56, 56)  # rotary channels of time, rows, columns
INDEX = "diffusion_pytorch_model.safetensors.index.json"
WHOLE = "a JoyImage-Edit network in bfloat16 or float32, as diffusers and ComfyUI name its tensors"
BLOCK = re.compile(r"double_blocks\.(\d+)\.")
DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class NetworkFiles:
    """The safetensors files of one network."""

    source: Path
    headers: Mapping[Path, Header]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors."""
        return {name: shape for header in self.headers.values() for name, shape in header.shapes.items()}

    def read(self, names: Collection[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """These tensors on the CPU; only they are read."""
        return {
            name: value.to(dtype)
            for path, header in self.headers.items()
            if not header.shapes.keys().isdisjoint(names)
            for name, value in map_tensors(path, header)
            if name in names
        }


def find_network_class():
    """diffusers' class of the network; an error explains how to install it."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "Expected diffusers, for training on JoyImage, got none. Install it: pip install "
            '"spatialweave[train]".'
        ) from error
    if not hasattr(diffusers, "JoyImageEditTransformer3DModel"):
        raise ImportError(
            f"Expected a diffusers with JoyImageEditTransformer3DModel, got {diffusers.__version__}. Update "
            'it: pip install -U "spatialweave[train]".'
        )
    return diffusers.JoyImageEditTransformer3DModel


def find_files(base: str | Path) -> NetworkFiles:
    """The network's files: of a pipeline folder of diffusers, of its `transformer` folder, or one file of
    ComfyUI's.
    """
    source = Path(base)
    if source.is_file():
        paths = [source]
    else:
        folder = source / "transformer" if (source / "transformer").is_dir() else source
        paths = list_network_files(folder)
    if not paths:
        raise ValueError(
            f"Expected {WHOLE} at {show_path(source)}, got no safetensors file there. Name a diffusers "
            "folder or ComfyUI's file."
        )
    headers = {path: read_header(path) for path in paths}
    for path, header in headers.items():
        check_kind(path, header)
    return NetworkFiles(source, headers)


def list_network_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, if it has one."""
    if (folder / INDEX).is_file():
        named = read_json_object(folder / INDEX).get("weight_map", {})
        return [folder / name for name in sorted(set(named.values()))]
    return sorted(folder.glob("*.safetensors"))


def check_kind(path: Path, header: Header) -> None:
    """ValueError for a file of another network, or of quantized weights."""
    if not any(BLOCK.match(name) or name.startswith(("img_in.", "proj_out.")) for name in header.shapes):
        raise ValueError(
            f"Expected {WHOLE}, got {show_path(path)}: {describe(header)}. Name JoyImage-Edit's file."
        )
    quantized = sorted(set(header.dtypes.values()) - set(DTYPES))
    if quantized:
        raise ValueError(
            f"Expected {WHOLE}, got {', '.join(quantized)} in {show_path(path)}: a LoRA is trained on the "
            "unquantized weights. Name the bfloat16 file; the LoRA then loads onto the quantized one, too."
        )


def read_network_sizes(files: NetworkFiles) -> dict[str, Any]:
    """The arguments of diffusers' class, from the shapes."""
    shapes = files.shapes
    try:
        hidden, channels, *patch = shapes["img_in.weight"]
        head = shapes["double_blocks.0.attn.img_attn_q_norm.weight"][0]
        text = shapes["condition_embedder.text_embedder.linear_1.weight"][1]
        inner = shapes["double_blocks.0.img_mlp.net.0.proj.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"Expected {WHOLE} at {show_path(files.source)}, got one without {error}. Name another file."
        ) from error
    if head != HEAD or hidden % head:
        raise ValueError(
            f"Expected heads of width {HEAD} at {show_path(files.source)}, got {head} of {hidden}. Name a "
            "network of the released shape."
        )
    layers = 1 + max(int(found[1]) for name in shapes if (found := BLOCK.match(name)))
    return {
        "patch_size": patch, "in_channels": channels, "hidden_size": hidden,
        "num_attention_heads": hidden // head, "text_dim": text, "mlp_width_ratio": inner / hidden,
        "num_layers": layers, "rope_dim_list": list(ROPE), "theta": THETA,
    }  # fmt: skip


def load_transformer(base: str | Path, dtype: torch.dtype, *, shard: bool = False) -> nn.Module:
    """The frozen network. `shard`: every process keeps its shard of each block's weights, and blocks are
    gathered one by one when they run (FSDP2).
    """
    files = find_files(base)
    with torch.device("meta"):
        network = find_network_class()(**read_network_sizes(files))
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_fit(expected, files.shapes, f"the network at {show_path(files.source)}")
    mesh = make_mesh() if shard else None
    units = [*network.double_blocks, network]  # the network last: weights outside the blocks
    prefixes = [f"double_blocks.{index}." for index in range(len(network.double_blocks))]
    for prefix in (*prefixes, ""):
        unit = units.pop(0)
        names = {name for name in expected if (name.startswith(prefix) if prefix else not BLOCK.match(name))}
        state = files.read(names, dtype)
        own = {name.removeprefix(prefix): value for name, value in state.items()}
        unit.load_state_dict(own, assign=True, strict=bool(prefix))
        unit.requires_grad_(False)
        if mesh is not None:
            shard_unit(unit, mesh)
    return network.train(False)


def report_size(network: nn.Module, trained: nn.Module, processes: int) -> None:
    """Log what weights, gradients and Adam's moments take, before the first step."""
    frozen = sum(value.numel() * value.element_size() for value in network.parameters())
    count = sum(value.numel() for value in trained.parameters())
    parts = f", sharded over {processes} processes" if processes > 1 else ""
    log.info(
        "JoyImage: %.2f GB of frozen weights%s; LoRA of %.2f million parameters, %.2f GB with gradients and "
        "Adam's moments. Activations come on top: checkpointing keeps one tensor for each block.",
        frozen / 1e9, parts, count / 1e6, 16 * count / 1e9,
    )  # fmt: skip


def as_facts(files: NetworkFiles) -> str:
    """The network's sizes, for the metadata of a LoRA."""
    return json.dumps(read_network_sizes(files), sort_keys=True)
