"""Truncated SVD of a trained LoRA: the directions with the largest effect on the outputs in training.

A direction may have a large norm but hardly any variance in the inputs, so the singular values of the weight
update alone are misleading; the SVD is weighted by the inputs' second moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...core.training.alignment import collect_activations
from ...core.training.data import collate, pick

SAMPLES, AT_ONCE = 64, 4
LEAST = 1e-8  # floor of the second moment's eigenvalues relative to the largest, for unseen directions


@torch.no_grad()
def measure_inputs(
    network: nn.Module,
    paths: Sequence[str],
    dataset: Sequence[Mapping[str, Any]],
    run: Callable[[Mapping[str, Tensor], Generator], Any],
) -> dict[str, Tensor]:
    """The second moment E[x x^T], (d, d) in float64, of each projection's inputs x in the map rows.

    Forward hooks collect the inputs while `run` (batch, generator) computes a few images and then their maps,
    or the maps alone.
    """
    samples, device = pick(dataset, SAMPLES), next(network.parameters()).device
    generator, squares = Generator().manual_seed(0), dict.fromkeys(paths, torch.zeros(()))
    for start in range(0, len(samples), AT_ONCE):
        batch = collate(samples[start : start + AT_ONCE])
        batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        with ExitStack() as stack:
            inputs = {
                path: stack.enter_context(collect_activations(network.get_submodule(path), to_input=True))
                for path in paths
            }
            run(batch, generator)
        for path, (x,) in inputs.items():
            maps = x[-len(batch["latent"]) :].double().cpu()
            squares[path] = squares[path] + torch.einsum("bni,bnj->ij", maps, maps) / (
                maps.shape[1] * len(samples)
            )
    return squares


@contextmanager
def with_weights(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the module has these weights."""
    own = {name: value.detach().clone() for name, value in module.state_dict().items()}
    module.load_state_dict(dict(state))
    try:
        yield
    finally:
        module.load_state_dict(own)


def truncate_svd(down: Tensor, up: Tensor, rank: int, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Truncated SVD of `up @ down`, optimal for inputs with the second moment `squares` (inputs, inputs).

    Returns matrices (rank, inputs) and (outputs, rank): the largest singular values of `up @ down` times the
    square root of `squares` (Eckart and Young).
    """
    values, vectors = torch.linalg.eigh(squares.double())
    roots = values.clamp_min(float(values.max()) * LEAST).sqrt()
    update = up.double().cpu() @ down.double().cpu()
    left, singular, right = torch.linalg.svd(update @ (vectors * roots) @ vectors.T, full_matrices=False)
    new_down, new_up = right[:rank] @ (vectors / roots) @ vectors.T, left[:, :rank] * singular[:rank]
    # balance the norms of both factors, as float16 has a limited range
    balance = (new_up.norm(dim=0) / new_down.norm(dim=1)).sqrt()
    return (new_down * balance[:, None]).float().contiguous(), (new_up / balance).float().contiguous()
