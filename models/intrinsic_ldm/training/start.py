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
from einops import rearrange, repeat
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


class PositionStatistics:
    """Statistics of one layer over images: the normal equations of W and R, then the logits they give."""

    def __init__(self, attn: nn.Module):
        self.keys, self.heads = attn.to_k, attn.heads
        width, inner = attn.to_k.in_features, attn.to_k.out_features // attn.heads
        # second moments of the maps' features, their products with the position code, then both of the keys
        self.features, self.feature_codes = torch.zeros(width, width), torch.zeros(width, CODE)
        self.key_moments = torch.zeros(self.heads, inner, inner)
        self.key_codes = torch.zeros(self.heads, inner, CODE)
        self.own_logit = self.mean_logit = 0.0

    def split(self, image: Tensor) -> Tensor:
        """Keys (h, b, n, d / h) of features (b, n, d)."""
        keys = self.keys(image.to(self.keys.weight.dtype)).float()
        return rearrange(keys, "b n (h d) -> h b n d", h=self.heads)

    def add(self, image: Tensor, maps: Tensor, code: Tensor) -> None:
        """Accumulate the moments of features (b, n, d) of images and of their maps; `code` is (n, CODE)."""
        code = repeat(code, "n c -> (b n) c", b=len(maps))
        rows, keys = rearrange(maps, "b n d -> (b n) d"), rearrange(self.split(image), "h b n d -> h (b n) d")
        self.features += rows.T @ rows
        self.feature_codes += rows.T @ code
        self.key_moments += keys.transpose(1, 2) @ keys
        self.key_codes += keys.transpose(1, 2) @ code

    def solve(self) -> None:
        """W (d, CODE) and R (h, d / h, CODE)."""
        self.w = solve_ridge(self.features, self.feature_codes)
        self.r = solve_ridge(self.key_moments, self.key_codes)

    def weigh(self, image: Tensor, maps: Tensor) -> None:
        """Accumulate the queries' mean logits: with the key at their own position, and over all keys."""
        predicted, keys = maps @ self.w, self.split(image) @ self.r[:, None]
        root = self.r.shape[1] ** 0.5
        self.own_logit += len(maps) * float((predicted * keys).sum(-1).mean()) / root
        self.mean_logit += len(maps) * float((predicted.mean(1) * keys.mean(2)).sum(-1).mean()) / root


def solve_ridge(squares: Tensor, products: Tensor) -> Tensor:
    """Ridge regression from the moments (..., d, d) and (..., d, c)."""
    mean = squares.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return torch.linalg.solve(squares + RIDGE * mean * torch.eye(squares.shape[-1]), products)


@torch.no_grad()
def attend_to_own_position(
    updates: Mapping[str, Any], layers: Sequence[Layer], base: Backbone, coupling: Coupling,
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
    statistics = {
        layer.name: PositionStatistics(base.network.get_submodule(layer.name)) for layer in layers
    }
    shape = samples[0]["latent"].shape[1:]
    # two passes over the same inputs: W and R, then the logits that they give
    for inputs in collect_inputs(statistics, base, coupling, samples, noise, times):
        for name, (image, maps) in inputs.items():
            statistics[name].add(image, maps, code_positions(*find_grid(shape, maps.shape[1])))
    for each in statistics.values():
        each.solve()
    for inputs in collect_inputs(statistics, base, coupling, samples, noise, times):
        for name, pair in inputs.items():
            statistics[name].weigh(*pair)
    for name, each in statistics.items():
        update = updates[f"{name}.to_q"]
        gain = (strength / max((each.own_logit - each.mean_logit) / count, 1e-6) / update.scale) ** 0.5
        update.down[:CODE] = gain * each.w.T
        update.up[:, :CODE] = gain * rearrange(each.r, "h d c -> (h d) c")


def collect_inputs(
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
        batch, t = samples[start : start + AT_ONCE], times[start : start + AT_ONCE]
        count = len(batch)
        clean = torch.cat(
            [torch.stack([sample[key] for sample in batch]).float() for key in ("latent", "intrinsic_latent")]
        )
        prompt = {
            name: torch.stack([sample[name] for sample in batch]).float() for name in CONDITIONS[base.family]
        }
        rows = Rows(("prompt",), 2 * count, ("intrinsic",))
        with coupling.call(rows), ExitStack() as stack:
            layers = {name: base.network.get_submodule(name).to_q for name in names}
            inputs = {
                name: stack.enter_context(collect_activations(layer, to_input=True))
                for name, layer in layers.items()
            }
            noised = base.add_noise(clean, noise[start : start + count].repeat(2, 1, 1, 1), t.repeat(2))
            base.predict(
                noised, t.repeat(2), {name: torch.cat([value, value]) for name, value in prompt.items()}
            )
        yield {name: tuple(x.float().split(count)) for name, (x,) in inputs.items()}
