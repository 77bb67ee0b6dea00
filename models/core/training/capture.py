"""Forward and backward pass as one CUDA graph: a recipe's `capture`.

A step of a tiny network is thousands of short kernels, and to launch each takes longer than to run it. A
graph is launched once. Clipping, optimizer and averaging stay outside: their launches hide behind the graph's
work, and torch's Muon takes its learning rate as a number, which a graph would keep.

What a graph asks for: the same tensors in every step (the batch is copied into those of the first one, the
gradients are kept and overwritten), one generator that it knows (seeded anew before each step, as ever), and
a loss that never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from .draws import seed_draws
from .recipe import Recipe

WARM = 3  # passes before the capture, in which libraries choose their kernels and workspaces

Pass = Callable[[Mapping[str, Any]], tuple[Tensor, Mapping[str, Tensor]]]
Recorder = Callable[[Callable[[], Any], Generator], tuple[Any, Callable[[], None]]]


class CapturedPass:
    """`(batch, number)` -> loss and logs, with the gradients in the parameters' .grad."""

    def __init__(
        self, run_pass: Pass, parameters: Iterable[torch.nn.Parameter], generator: Generator, record: Recorder
    ):
        """`run_pass`: forward and backward pass of a batch. `record`: `record_graph`."""
        self.run_pass, self.parameters, self.generator = run_pass, list(parameters), generator
        self.record, self.replay = record, None
        self.batch: dict[str, Any] = {}
        self.out: tuple[Tensor, Mapping[str, Tensor]] | None = None

    def __call__(self, batch: Mapping[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.replay is None:
            self.batch = {name: clone(value) for name, value in batch.items()}
            self.out, self.replay = self.record(self.run_once, self.generator)
        for name, value in batch.items():
            if isinstance(value, Tensor):
                self.batch[name].copy_(value)
        seed_draws(number, self.generator)
        self.replay()
        loss, logs = self.out
        # the next step overwrites them
        return loss.clone(), {name: clone(value) for name, value in logs.items()}

    def run_once(self) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The pass on the kept batch. Without gradients of before: it makes new ones and adds to none."""
        for parameter in self.parameters:
            parameter.grad = None
        loss, logs = self.run_pass(self.batch)
        return loss.detach(), logs


def clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def record_graph(run: Callable[[], Any], generator: Generator) -> tuple[Any, Callable[[], None]]:
    """What `run` gave when it was captured, and the function that computes it anew into the same tensors."""
    device = generator.device
    side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM):
            run()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        out = run()
    return out, graph.replay


def check_abilities(recipe: Recipe, task: Any, accelerator: Any) -> None:
    """ValueError if the recipe asks for what this loss or this machine cannot do."""
    for key, able in (("device_noise", task.draws_there), ("capture", task.captures)):
        if getattr(recipe, key) and not able:
            raise ValueError(
                f"Expected no {key} in a recipe of {recipe.system}, whose loss is not written for it, got "
                f"true. Leave {key} out."
            )
    device, processes = accelerator.device.type, accelerator.num_processes
    if recipe.capture and (device != "cuda" or processes > 1):
        raise ValueError(
            f"Expected one process on a CUDA card for the recipe's capture, got {processes} on {device}. "
            "Leave capture out."
        )
