"""What a run will take, told before it starts: memory by parts, and seconds a step on this device."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import ConnectorConfig
from ..flux import FluxConfig

log = logging.getLogger("spatialweave.training")
PROBE = 1024  # side of the matrices whose product measures a device
TOKEN_VALUES = 34  # of a block's activations that a backward pass keeps, in units of tokens x width
FLOAT = 4  # bytes
ADAM = 4  # numbers a trained parameter takes in float32: weight, gradient, two moments


@dataclass(frozen=True)
class Estimate:
    """Gigabytes a process, and seconds a step."""

    frozen: float
    trained: float
    activations: float
    seconds: float

    def __str__(self) -> str:
        total = self.frozen + self.trained + self.activations
        return (
            f"About {total:.2f} GB a process: {self.frozen:.2f} frozen weights, {self.trained:.2f} trained "
            f"weights with gradients and Adam's moments, {self.activations:.2f} activations. About "
            f"{self.seconds:.2g} s a step."
        )


def count_tokens(config: FluxConfig, sample: Mapping[str, Tensor], queries: int) -> int:
    """The sequence length of one sample: text, target, reference and geometry tokens."""
    height, width = sample["latent"].shape[-2:]
    image = -(-height // config.patch_size) * -(-width // config.patch_size)
    text = sample["context"].shape[0] if "context" in sample else sample["tokens"].shape[-1]
    return text + 2 * image + queries


def estimate(
    network: nn.Module, config: FluxConfig, trained: nn.Module, *, batch: int, tokens: int, checkpointing:
    bool, processes: int = 1, shards: int = 1, device: torch.device, connector: ConnectorConfig | None = None,
    geometry_tokens: int = 0,
) -> Estimate:  # fmt: skip
    """`batch`: samples of a step over all processes; `tokens` of a sample; `shards` of the frozen weights;
    `connector`: the one that is trained, on that many geometry tokens of a sample."""
    weights = sum(value.numel() * value.element_size() for value in network.parameters())
    numbers = sum(value.numel() for value in trained.parameters())
    dtype = next(network.parameters()).dtype
    blocks = config.depth + config.depth_single_blocks
    rows = batch / processes * tokens * config.hidden_size * dtype.itemsize
    kept = rows * (blocks + TOKEN_VALUES if checkpointing else blocks * TOKEN_VALUES)
    if connector is not None:
        kept += batch / processes * FLOAT * connector_values(connector, geometry_tokens)
    parameters = sum(value.numel() for value in network.parameters())
    # forward, and a backward pass through the frozen weights to their inputs: 2 + 2 operations a weight and
    # token; checkpointing runs the forward pass twice; attention counts beside them
    passes = 6 if checkpointing else 4
    scores = 2 * tokens * config.hidden_size * blocks
    operations = batch / processes * tokens * passes * (parameters + scores)
    return Estimate(
        weights / shards / 1e9,
        FLOAT * ADAM * numbers / 1e9,
        kept / 1e9,
        operations / measure_rate(device, dtype),
    )


def connector_values(config: ConnectorConfig, tokens: int) -> int:
    """Numbers of one sample that a backward pass through the connector keeps.

    Of a layer's queries: four of their width, the attention's queries and result, and the hidden values
    before and after their activation. Of its geometry tokens: their norm's result, keys and values.
    """
    inner, hidden = config.inner_width, int(config.width * config.mlp_ratio)
    queries = config.queries * (4 * config.width + 2 * inner + 2 * hidden)
    return config.layers * (queries + tokens * (config.geometry_width + 2 * inner)) + (
        tokens * config.geometry_width
    )


def measure_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Operations a second of matrix products on this device."""
    a, b = (torch.ones(PROBE, PROBE, device=device, dtype=dtype) for _ in range(2))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        float((a @ b)[0, 0])  # waits for the device
        count += 1
    return 2 * PROBE**3 * count / (time.perf_counter() - started)


def log_estimate(value: Estimate) -> None:
    log.info("%s", value)
