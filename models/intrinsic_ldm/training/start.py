"""Initialization of a LoRA so that each map query attends to the image key at its own position.

By equation 1 every map query attends to every image key, and a LoRA with zero update has to learn which of
them are relevant. If the base's features encode position (`position` in the loss of `training.base`; those of
a deep network do so anyway), two linear maps suffice as a start: W predicts the position code from a map's
features z, R from an image's keys k, both by ridge regression. With s R W^T z added to the query, its logit
is largest for the key at its own position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...core.training.alignment import CODE, code_positions, collect_activations, find_grid
from ...core.training.data import pick
from ..attention import Coupling
from ..config import CONDITIONS
from ..layers import Layer
from ..network import Backbone
from ..rows import Rows

SAMPLES, AT_ONCE = 64, 4
RIDGE = 1e-3  # relative to the features' mean square, against directions without variance


class Places:
    """Accumulated statistics of one layer over images: the normal equations of W and R, then their logits."""

    def __init__(self, attn: nn.Module):
        self.keys, self.heads = attn.to_k, attn.heads
        width, inner = attn.to_k.in_features, attn.to_k.out_features // attn.heads
        self.features, self.read = torch.zeros(width, width), torch.zeros(width, CODE)
        self.keyed, self.keyed_read = (
            torch.zeros(self.heads, inner, inner),
            torch.zeros(self.heads, inner, CODE),
        )
        self.own = self.any = 0.0

    def split(self, image: Tensor) -> Tensor:
        """Keys (heads, b, n, d / heads) of features (b, n, d)."""
        return (
            self.keys(image.to(self.keys.weight.dtype)).float().unflatten(2, (self.heads, -1)).movedim(2, 0)
        )

    def add(self, image: Tensor, maps: Tensor, code: Tensor) -> None:
        code = code.expand(len(maps), -1, -1).flatten(0, 1)
        rows, keys = maps.flatten(0, 1), self.split(image).flatten(1, 2)
        self.features += rows.T @ rows
        self.read += rows.T @ code
        self.keyed += keys.transpose(1, 2) @ keys
        self.keyed_read += keys.transpose(1, 2) @ code

    def solve(self) -> None:
        """W (d, CODE) and R (heads, d / heads, CODE)."""
        self.w, self.r = solve_ridge(self.features, self.read), solve_ridge(self.keyed, self.keyed_read)

    def weigh(self, image: Tensor, maps: Tensor) -> None:
        """Accumulate the queries' mean logits: with the key at their own position, and over all keys."""
        wanted, keys = maps @ self.w, self.split(image) @ self.r[:, None]
        root = self.r.shape[1] ** 0.5
        self.own += len(maps) * float((wanted * keys).sum(-1).mean()) / root
        self.any += len(maps) * float((wanted.mean(1) * keys.mean(2)).sum(-1).mean()) / root


def solve_ridge(squares: Tensor, products: Tensor) -> Tensor:
    """Ridge regression from the moments (..., d, d) and (..., d, c)."""
    mean = squares.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return torch.linalg.solve(squares + RIDGE * mean * torch.eye(squares.shape[-1]), products)


@torch.no_grad()
def look_at_own_place(
    parts: Mapping[str, Any], layers: Sequence[Layer], base: Backbone, coupling: Coupling,
    dataset: Sequence[Mapping[str, Any]],
    strength: float, generator: Generator,
) -> None:  # fmt: skip
    """Fill the low-rank updates of `to_q`, keyed as `projections`, of rank CODE or more and zero update.

    strength: the resulting logit of the same position above the mean, averaged over heads and positions.
    """
    samples = pick(dataset, SAMPLES)
    count = len(samples)
    times = torch.linspace(0, base.steps - 1, count).long()[torch.randperm(count, generator=generator)]
    noise = torch.randn(count, *samples[0]["latent"].shape, generator=generator)
    found = {layer.name: Places(base.network.get_submodule(layer.name)) for layer in layers}
    shape = samples[0]["latent"].shape[1:]
    for heard in hear(found, base, coupling, samples, noise, times):
        for name, (image, maps) in heard.items():
            found[name].add(image, maps, code_positions(*find_grid(shape, maps.shape[1])))
    for places in found.values():
        places.solve()
    for heard in hear(found, base, coupling, samples, noise, times):
        for name, pair in heard.items():
            found[name].weigh(*pair)
    for name, places in found.items():
        part = parts[f"{name}.to_q"]
        gain = (strength / max((places.own - places.any) / count, 1e-6) / part.scale) ** 0.5
        part.down[:CODE] = gain * places.w.T
        part.up[:, :CODE] = gain * places.r.flatten(0, 1)


def hear(
    names: Mapping[str, Any],
    base: Backbone,
    coupling: Coupling,
    samples: Sequence[Mapping[str, Any]],
    noise: Tensor,
    times: Tensor,
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """The inputs of each self-attention for images and for their maps, (b, n, d) each.

    Forward hooks collect them. No row attends to another; an image and its maps have the same noise.
    """
    for start in range(0, len(samples), AT_ONCE):
        some, t = samples[start : start + AT_ONCE], times[start : start + AT_ONCE]
        count = len(some)
        clean = torch.cat(
            [torch.stack([sample[key] for sample in some]).float() for key in ("latent", "intrinsic_latent")]
        )
        prompt = {
            name: torch.stack([sample[name] for sample in some]).float() for name in CONDITIONS[base.family]
        }
        rows = Rows(("prompt",), 2 * count, ("intrinsic",))
        with coupling.call(rows), ExitStack() as stack:
            queries = {
                name: stack.enter_context(
                    collect_activations(base.network.get_submodule(name).to_q, to_input=True)
                )
                for name in names
            }
            noised = base.add_noise(clean, noise[start : start + count].repeat(2, 1, 1, 1), t.repeat(2))
            base.predict(
                noised, t.repeat(2), {name: torch.cat([part, part]) for name, part in prompt.items()}
            )
        yield {name: tuple(given.float().split(count)) for name, (given,) in queries.items()}
