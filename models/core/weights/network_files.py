"""What loading and saving a network have in common, whether its weights are a file or a state dict."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import WeightsError, check_finite, describe_state, read_tensors, write_tensors
from .header import Header, read_header

PathOrState = str | os.PathLike | Mapping[str, Tensor]
# dtype of a file -> dtype that a network is loaded in if float16 overflows in it
WITHOUT_FLOAT16 = {
    "F64": torch.float32, "F32": torch.float32, "F16": torch.float32, "BF16": torch.bfloat16,
}  # fmt: skip


def read_weights_header(path_or_state: PathOrState) -> tuple[Header, str]:
    """The header of a file or a state dict, and its name for messages."""
    if isinstance(path_or_state, Mapping):
        return describe_state(path_or_state), "the state dict"
    return read_header(path_or_state), str(path_or_state)


def read_renamed(path_or_state: PathOrState, names: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """The tensors `names` (theirs -> ours) under our names; WeightsError if one holds NaN or infinity."""
    if isinstance(path_or_state, Mapping):
        check_finite({name: path_or_state[name] for name in names}, what)
        state = path_or_state
    else:
        state = read_tensors(path_or_state)
    return {ours: state[name] for name, ours in names.items()}


def check_dtypes(dtypes: Mapping[str, str], known: Collection[str], what: str) -> None:
    """WeightsError for the first tensor of another dtype, as of quantized weights without their scales."""
    for name, found in dtypes.items():
        if found not in known:
            raise WeightsError(
                f"Expected {name} of {what} in one of {', '.join(known)}, got {found}. Use the unquantized "
                "file."
            )


def module_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter and buffer of a module, which may be on the meta device."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def write_network(
    path: str | os.PathLike,
    network: nn.Module,
    config: Mapping[str, Any],
    extra_metadata: Mapping[str, str] | None = None,
    *,
    kind: str,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    int8: bool = False,
) -> Path:
    """Write a network with its config as metadata, `prefix` before every name, cast to `dtype` if given; with
    `int8` its large matrices in eight bits (int8_rows.py)."""
    state = {prefix + name: value.to(dtype or value.dtype) for name, value in network.state_dict().items()}
    metadata = {"config": json.dumps(config), **(extra_metadata or {})}
    return write_tensors(path, state, metadata, kind=kind, int8=int8)
