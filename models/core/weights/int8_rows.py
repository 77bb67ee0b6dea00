"""Matrices of a file of ours in eight bits a weight, with one scale a row: half of float16.

A file says so by the metadata entry INT8; a matrix's scales, float32 (rows,), are stored under its name and
INT8_SCALES. `read_header` and `read_tensors` give what was meant, in float16, so nothing else has to know.
Unlike core's int8 layouts (quantization.py) this is storage alone: nothing is computed in integers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .header import INT8_SCALES

LEAST = 4096  # values from which on a matrix is stored so; smaller ones gain nothing
_LARGEST = 127


def pack_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors to store: of every matrix with at least LEAST values its integers and its scales."""
    packed = {}
    for name, value in state.items():
        if value.ndim < 2 or value.numel() < LEAST or not value.is_floating_point():
            packed[name] = value
            continue
        rows = value.detach().to("cpu", torch.float32).flatten(1)
        scale = (rows.abs().amax(1) / _LARGEST).clamp(min=1e-30)
        packed[name] = (rows / scale[:, None]).round_().to(torch.int8).view(value.shape)
        packed[name + INT8_SCALES] = scale
    return packed


def unpack_rows(integers: Tensor, scale: Tensor) -> Tensor:
    """A stored matrix in float16."""
    return (integers.flatten(1).float() * scale[:, None]).view(integers.shape).half()
