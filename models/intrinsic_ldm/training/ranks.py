"""Which directions of a trained LoRA are worth shipping: those that change most what the projections say of the training's pictures.

A direction may be long and hardly ever used, because no feature points along it; so the plain singular values of a product mislead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...core.training.alignment import listen
from ...core.training.data import collate, pick

SAMPLES, AT_ONCE = 64, 4
LEAST = 1e-8  # of the greatest: a variance below counts as this, for nothing was seen along it


@torch.no_grad()
def measure_inputs(
    network: nn.Module,
    paths: Sequence[str],
    dataset: Sequence[Mapping[str, Any]],
    run: Callable[[Mapping[str, Tensor], Generator], Any],
) -> dict[str, Tensor]:
    """The mean of x x^T, (d, d) in float64, over what each projection hears of the maps while `run` (batch, generator) has the network
    compute some pictures and then their maps, or the maps alone."""
    samples, device = pick(dataset, SAMPLES), next(network.parameters()).device
    generator, squares = Generator().manual_seed(0), dict.fromkeys(paths, torch.zeros(()))
    for start in range(0, len(samples), AT_ONCE):
        batch = collate(samples[start : start + AT_ONCE])
        batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        with ExitStack() as stack:
            heard = {
                path: stack.enter_context(listen(network.get_submodule(path), to_input=True))
                for path in paths
            }
            run(batch, generator)
        for path, (given,) in heard.items():
            maps = given[-len(batch["latent"]) :].double().cpu()
            squares[path] = squares[path] + torch.einsum("bni,bnj->ij", maps, maps) / (
                maps.shape[1] * len(samples)
            )
    return squares


@contextmanager
def holding(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, the module has these weights."""
    own = {name: value.detach().clone() for name, value in module.state_dict().items()}
    module.load_state_dict(dict(state))
    try:
        yield
    finally:
        module.load_state_dict(own)


def shorten(down: Tensor, up: Tensor, rank: int, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (rank, inputs) and (outputs, rank) whose product says most nearly what `up @ down` does of inputs with the mean square
    `squares` (inputs, inputs): the greatest singular values of `up @ down` times its root (Eckart and Young)."""
    values, turned = torch.linalg.eigh(squares.double())
    spread = values.clamp_min(float(values.max()) * LEAST).sqrt()
    whole = up.double().cpu() @ down.double().cpu()
    left, found, right = torch.linalg.svd(whole @ (turned * spread) @ turned.T, full_matrices=False)
    new_down, new_up = right[:rank] @ (turned / spread) @ turned.T, left[:, :rank] * found[:rank]
    # of equal length, as float16 reaches neither far up nor far down
    balance = (new_up.norm(dim=0) / new_down.norm(dim=1)).sqrt()
    return (new_down * balance[:, None]).float().contiguous(), (new_up / balance).float().contiguous()
