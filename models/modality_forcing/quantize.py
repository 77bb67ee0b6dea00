"""Quantization of a Modality Forcing file: which layers are quantized, and which keep their precision."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.weights.conversion import Progress, convert_file
from ..core.weights.files import WeightsError, check_fit, read_header
from ..core.weights.quantization import FORMATS
from .weights import BLOCKS, DEPTH_HEAD, find_config, find_prefix, network_shapes, own_names

PLAIN = "bf16"
CHOICES = (PLAIN, *FORMATS)


def convert_network(
    source: str | os.PathLike,
    target: str | os.PathLike,
    form: str,
    on_progress: Progress = lambda done, total: None,
) -> Path:
    """Write a network file in one of CHOICES, under the same tensor names. WeightsError: an unfit source."""
    if form not in CHOICES:
        raise WeightsError(
            f"Expected one of the formats {', '.join(CHOICES)}, got {form!r}. Choose one of them."
        )
    header = read_header(source)
    prefix = find_prefix(header, str(source))
    config = find_config(header, prefix, str(source))
    names = own_names(header.shapes, prefix, str(source))
    shapes = {names[name]: shape for name, shape in header.shapes.items()}
    check_fit(network_shapes(config), shapes, str(source))
    planned = plan_precisions(shapes, form)
    plan = {name: planned[ours] for name, ours in names.items()}
    return convert_file(source, target, plan, {"config": json.dumps(config.to_json())}, on_progress)


def plan_precisions(shapes: Mapping[str, tuple[int, ...]], form: str) -> dict[str, str | torch.dtype]:
    """For each released tensor name: the name of its format, or its dtype.

    The matrices of the blocks are quantized, 95 % of the network. What stays bfloat16 is small or affects
    every token: input and output projections, timestep embeddings, modulations, norms. The depth head is
    float32, since lower precision shows as bands in the depth.
    """
    plan: dict[str, str | torch.dtype] = {}
    for name, shape in shapes.items():
        if name.startswith(DEPTH_HEAD):
            plan[name] = torch.float32
        elif form in FORMATS and len(shape) == 2 and name.startswith(BLOCKS):
            plan[name] = form
        else:
            plan[name] = torch.bfloat16
    return plan
