"""Depth adapter files: safetensors with the config in the metadata, and what another file is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

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
from .config import DepthAdapterConfig
from .network import AdapterNetwork

KIND = "depth adapter"
CONFIG = "config"  # metadata key
TINY_ADAPTER = Path(__file__).with_name("tiny.safetensors")  # for the tiny latent diffusion model
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
    if header.metadata.get(KIND_KEY) != KIND:
        raise WeightsError(
            f"Expected a {KIND} of SpatialWeave in {what}, got {describe(header)}. Choose a file "
            "that was trained as one."
        )
    try:
        return DepthAdapterConfig.from_json(json.loads(header.metadata.get(CONFIG, "null")))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"Expected the config of a {KIND} in the metadata of {what}, got another "
            f"({str(error).rstrip('.')}). Fetch the file again."
        ) from error
