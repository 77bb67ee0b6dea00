"""Connector files: their names, the configuration in their metadata, and what a wrong file is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.weights.files import KIND as KIND_KEY
from ..core.weights.files import (
    Header,
    WeightsError,
    check_fit,
    describe,
    explain_part,
    fill_module,
    read_header,
    read_tensors,
    write_tensors,
)
from .config import ConnectorConfig
from .network import GeometryConnector, LatentDepthHead

KIND = "SpatialDiff geometry connector"
CONFIG = "config"  # metadata entry: the configuration as JSON
TINY_CONNECTOR = Path(__file__).with_name("tiny_connector.safetensors")  # of the tiny editor
HEAD = "depth_head."  # prefix of the depth head, which only training uses
PRECISIONS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float32}


def load_connector(
    path: str | os.PathLike, *, operations=torch.nn, device: str | torch.device = "cpu", dtype=None
) -> GeometryConnector:
    """A connector, whose configuration is the file's; `dtype=None` keeps the file's precision.

    The depth head in a file is left there. WeightsError says in one sentence what a wrong file is.
    """
    header = read_header(path)
    config = check_header(header, str(path))
    dtype = dtype or PRECISIONS[header.dtypes["queries"]]
    network = GeometryConnector(config, operations=operations, device="meta", dtype=dtype)
    state = {name: value for name, value in read_tensors(path).items() if not name.startswith(HEAD)}
    return fill_module(network, state, what=str(path), device=device)


def load_depth_head(
    path: str | os.PathLike, *, device: str | torch.device = "cpu", dtype=None
) -> LatentDepthHead | None:
    """The depth head in a connector's file, with which training goes on; None if it has none."""
    header = read_header(path)
    config = check_header(header, str(path))
    names = [name for name in header.shapes if name.startswith(HEAD)]
    if not names:
        return None
    head = LatentDepthHead(config, device="meta", dtype=dtype or PRECISIONS[header.dtypes[names[0]]])
    state = read_tensors(path)
    state = {name.removeprefix(HEAD): state[name] for name in names}
    return fill_module(head, state, what=f"{path} ({HEAD}*)", device=device)


def save_connector(
    path: str | os.PathLike,
    connector: GeometryConnector,
    head: LatentDepthHead | None = None,
    extra_metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    int8: bool = False,
) -> Path:
    """Write a connector with its configuration as metadata, cast to `dtype` if given, and the depth head;
    with `int8` large matrices in eight bits, read as float16."""
    state: dict[str, Tensor] = dict(connector.state_dict())
    if head is not None:
        state |= {HEAD + name: value for name, value in head.state_dict().items()}
    state = {name: value.to(dtype or value.dtype) for name, value in state.items()}
    metadata = {CONFIG: json.dumps(connector.config.to_json()), **(extra_metadata or {})}
    return write_tensors(path, state, metadata, kind=KIND, int8=int8)


def check_header(
    header: Header, what: str, describe: Callable[[Header], str] = describe
) -> ConnectorConfig:
    """The configuration of a file whose connector is whole. WeightsError says what another file is."""
    if header.metadata.get(KIND_KEY) != KIND:
        raise WeightsError(
            f"Expected a {KIND}, got {describe(header)} in {what}. Choose a connector, as SpatialDiff's "
            f"training writes them{explain_part(what)}."
        )
    config = find_config(header, what)
    shapes = {name: shape for name, shape in header.shapes.items() if not name.startswith(HEAD)}
    check_fit(network_shapes(config), shapes, f"{what}, a {KIND}")
    odd = [name for name in header.shapes if header.dtypes[name] not in PRECISIONS]
    if odd:
        raise WeightsError(
            f"Expected {odd[0]} of {what} in one of {', '.join(PRECISIONS)}, got {header.dtypes[odd[0]]}. "
            "Use the file that is not quantized."
        )
    return config


def find_config(header: Header, what: str) -> ConnectorConfig:
    """The configuration in a file's metadata."""
    if CONFIG not in header.metadata:
        raise WeightsError(
            f"Expected the configuration of the connector in the metadata of {what}, got none. Write it "
            "again with its metadata: base family, widths and query grid do not show in the tensors."
        )
    try:
        return ConnectorConfig.from_json(json.loads(header.metadata[CONFIG]))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"Expected a sound configuration in the metadata of {what}, got a faulty one "
            f"({str(error).rstrip('.')}). Fetch the file again."
        ) from error


def network_shapes(config: ConnectorConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, without memory for any."""
    return {
        name: tuple(value.shape)
        for name, value in GeometryConnector(config, device="meta").state_dict().items()
    }
