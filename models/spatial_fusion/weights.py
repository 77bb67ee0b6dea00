"""Files of the two networks: safetensors with the config in the metadata, and what another file is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..core.weights.files import KIND as KIND_KEY
from ..core.weights.files import (
    Header,
    WeightsError,
    check_fit,
    describe,
    fill_module,
    read_header,
    read_tensors,
    write_tensors,
)
from ..core.weights.network_files import check_dtypes, module_shapes
from .config import DepthAdapterConfig, SpatialTransformerConfig
from .network import AdapterNetwork, SpatialTransformer

Config = TypeVar("Config")
KIND = "depth adapter"
TRANSFORMER_KIND = "spatial transformer"
CONFIG = "config"  # metadata key
TINY_ADAPTER = Path(__file__).with_name("tiny.safetensors")  # for the tiny latent diffusion model
VGGT_ENCODER, VGGT_HEAD = "aggregator.patch_embed.", "depth_head."  # in VGGT's files
DTYPES = ("F32", "F16", "BF16", "F64")


def save_adapter(
    path: str | os.PathLike, adapter: AdapterNetwork, metadata: Mapping[str, str] | None = None, *,
    dtype: torch.dtype = torch.float32,
) -> Path:  # fmt: skip
    """Write an adapter, with its config as metadata."""
    state = {name: value.to(dtype) for name, value in adapter.state_dict().items()}
    config = json.dumps(adapter.config.to_json())
    return write_tensors(path, state, {CONFIG: config, **(metadata or {})}, kind=KIND)


def load_adapter(
    path: str | os.PathLike, describe: Callable[[Header], str] = describe
) -> AdapterNetwork:
    """The adapter of a file in float32, for inference. WeightsError says what another file is.

    `describe` words what a file is that is none of ours.
    """
    header = read_header(path)
    config = read_adapter_config(header, str(path), describe)
    adapter = AdapterNetwork(config, device="meta", dtype=torch.float32)
    shapes = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    check_fit(shapes, header.shapes, f"{path}, a {KIND},")
    for name, dtype in header.dtypes.items():
        if dtype not in DTYPES:
            raise WeightsError(
                f"Expected {name} of {path} in one of {', '.join(DTYPES)}, got {dtype}. Use the file as it "
                "was trained."
            )
    return fill_module(adapter, read_tensors(path), what=str(path)).train(False).requires_grad_(False)


def read_adapter_config(
    header: Header, what: str, describe: Callable[[Header], str] = describe
) -> DepthAdapterConfig:
    """The config that a file states in its metadata."""
    return read_stated_config(header, what, KIND, DepthAdapterConfig.from_json, describe)


def read_stated_config(
    header: Header,
    what: str,
    kind: str,
    from_json: Callable[[Any], Config],
    describe: Callable[[Header], str],
) -> Config:
    """The config in the metadata of a file of this kind; WeightsError says what another file is."""
    if header.metadata.get(KIND_KEY) != kind:
        raise WeightsError(
            f"Expected a {kind} of SpatialWeave in {what}, got {describe(header)}. Choose a file "
            "that was trained as one."
        )
    try:
        return from_json(json.loads(header.metadata.get(CONFIG, "null")))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"Expected the config of a {kind} in the metadata of {what}, got another "
            f"({str(error).rstrip('.')}). Fetch the file again."
        ) from error


def save_spatial_transformer(
    path: str | os.PathLike, transformer: SpatialTransformer, metadata: Mapping[str, str] | None = None, *,
    dtype: torch.dtype | None = None, int8: bool = False,
) -> Path:  # fmt: skip
    """Write a spatial transformer, with its config as metadata, cast to `dtype` if given, with `int8` its
    large matrices in eight bits."""
    state = {name: value.to(dtype or value.dtype) for name, value in transformer.state_dict().items()}
    config = json.dumps(transformer.config.to_json())
    return write_tensors(path, state, {CONFIG: config, **(metadata or {})}, kind=TRANSFORMER_KIND, int8=int8)


def load_spatial_transformer(
    path: str | os.PathLike, *, operations=torch.nn, dtype: torch.dtype = torch.float32
) -> SpatialTransformer:
    """The spatial transformer of a file, for inference. WeightsError says what another file is."""
    config = examine_spatial_transformer(read_header(path), str(path))
    network = SpatialTransformer(config, operations=operations, device="meta", dtype=dtype)
    return fill_module(network, read_tensors(path), what=str(path)).train(False).requires_grad_(False)


def examine_spatial_transformer(
    header: Header, what: str, describe: Callable[[Header], str] = describe
) -> SpatialTransformerConfig:
    """The config of a file that holds a whole spatial transformer; WeightsError says what another is."""
    config = read_stated_config(header, what, TRANSFORMER_KIND, SpatialTransformerConfig.from_json, describe)
    shapes = module_shapes(SpatialTransformer(config, device="meta"))
    check_fit(shapes, header.shapes, f"{what}, a {TRANSFORMER_KIND},")
    check_dtypes(header.dtypes, DTYPES, what)
    return config


def fill_from_vggt(transformer: SpatialTransformer, path: str | os.PathLike, *, head: bool = True) -> None:
    """Image encoder and, with `head`, depth head of a VGGT file, or the encoder of a DINOv2 file.

    The paper takes its depth head from VGGT, whose image encoder is a DINOv2 with registers, too. A DINOv2
    file has the names of the published repository, without a prefix.
    """
    state = read_tensors(path)
    prefix = VGGT_ENCODER if any(name.startswith(VGGT_ENCODER) for name in state) else ""
    parts = {prefix: transformer.image_encoder}
    if head:
        parts[VGGT_HEAD] = transformer.depth_head
    for start, module in parts.items():
        own = module_shapes(module)
        found = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        check_fit(own, shapes, f"{start or 'the image encoder'} of {path}")
        module.load_state_dict(found, strict=True)
