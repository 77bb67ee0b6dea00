"""Training a depth adapter alone, on a frozen base model: the paper's L_diff with F added to z_t.

A batch has latent (b, c, h, w) of unit standard deviation, depth and mask (b, h s, w s), and the base's
prompt tensors, each (b, k, ...) with a row per caption, and the latents of its references, all encoded
beforehand. All random numbers come from
the given generator, on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..core.losses import sum_terms
from ..core.training.captions import put_empty
from ..core.training.loop import Batch, Task
from .config import DepthAdapterConfig
from .depth_code import code_depth
from .network import AdapterNetwork
from .weights import load_adapter, save_adapter

ADAPTER_FILE = "depth_adapter.safetensors"  # what a run ships, in its output folder


@dataclass(frozen=True)
class AdapterLoss:
    """The `loss` settings of a recipe."""

    caption_dropout: float = 0.1  # probability of the empty prompt: F is the same in every branch of CFG
    # lowest noise level that is drawn, as a share of all timesteps: depth acts early in sampling
    least_noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1 or not 0 <= self.least_noise < 1:
            raise ValueError(
                "Expected caption_dropout from 0 to 1 and least_noise from 0 to below 1 in the recipe's "
                f"loss, got {self.caption_dropout} and {self.least_noise}. Correct the recipe."
            )


class Denoiser(Protocol):
    """A frozen base model as the loss uses it."""

    network: nn.Module
    conditions: tuple[str, ...]  # names of the prompt tensors
    references: tuple[str, ...]  # names of the latents of an edit's source images
    channels: int

    def add_noise(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network reads at noise levels (b,) in [0, 1): 0 the cleanest, 1 pure noise."""

    def target(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network should predict from it."""

    def predict(self, x: Tensor, level: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
        """What it predicts, (b, c, h, w) in float32; `prompt` has the references, too."""


def build_adapter_task(
    *, config: DepthAdapterConfig, base: Denoiser, dataset: Any, empty: Mapping[str, Tensor],
    settings: AdapterLoss, seed: int, weights: str = "", ship: torch.dtype = torch.float16,
) -> Task:  # fmt: skip
    """The Task of an adapter for `base`. `weights` is an adapter of the same config to go on from."""
    check_encoded(dataset[0], config, base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = AdapterNetwork(config)
    if weights:
        start = load_adapter(weights)
        if start.config != config:
            raise ValueError(
                f"Expected an adapter of the recipe's config {config.to_json()} in {weights}, got "
                f"{start.config.to_json()}. Correct one of them."
            )
        adapter.load_state_dict(start.state_dict())
    base.network.requires_grad_(False)
    return Task(
        model=adapter,
        loss=partial(adapter_loss, base=base, empty=empty, settings=settings),
        dataset=dataset,
        companions=(base.network,),
        export=partial(export_adapter, config=config, dtype=ship),
    )


def check_encoded(sample: Mapping[str, Any], config: DepthAdapterConfig, base: Denoiser) -> None:
    """ValueError unless the samples were encoded for this base and adapter."""
    latent, depth = sample["latent"].shape, sample["depth"].shape
    sides = tuple(side * config.stride for side in latent[1:])
    if latent[0] != config.latent_channels or latent[0] != base.channels or tuple(depth) != sides:
        raise ValueError(
            f"Expected latents ({config.latent_channels}, h, w) of this base with depth at {config.stride} "
            f"times their size, got {tuple(latent)} and {tuple(depth)}. Encode the folder for this base."
        )


def adapter_loss(
    model: nn.Module, batch: Batch, generator: Generator, *, base: Denoiser, empty: Mapping[str, Tensor],
    settings: AdapterLoss,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Mean squared error of the base's prediction from z_t + F at a uniform random noise level."""
    x0 = batch["latent"].float()
    prompt = draw_prompt(batch, base.conditions, empty, generator, settings.caption_dropout)
    prompt |= {name: batch[name] for name in base.references}
    level = settings.least_noise + (1 - settings.least_noise) * torch.rand(len(x0), generator=generator)
    level = level.to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    config = getattr(model, "module", model).config
    coded = code_depth(
        batch["depth"], batch["mask"], code=config.code, bound=config.bound, least_iqr=config.least_iqr
    )
    addend = model(coded, batch["mask"]).float()
    output = base.predict(base.add_noise(x0, noise, level) + addend, level, prompt)
    loss, logs = sum_terms({"image": F.mse_loss(output, base.target(x0, noise, level))})
    return loss, {**logs, "addend": addend.detach().square().mean().sqrt()}


def draw_prompt(
    batch: Batch, names: tuple[str, ...], empty: Mapping[str, Tensor], generator: Generator, dropout: float
) -> dict[str, Tensor]:
    """The tensors of one caption of each image's k, in some images those of the empty prompt."""
    count, captions = batch[names[0]].shape[:2]
    choice = torch.randint(captions, (count,), generator=generator)
    dropped = torch.rand(count, generator=generator) < dropout
    prompt = {}
    for name in names:
        rows = batch[name][torch.arange(count), choice.to(batch[name].device)]
        prompt[name] = put_empty(rows, empty[name], dropped) if dropout else rows
    return prompt


def export_adapter(
    folder: Path, state: Mapping[str, Tensor], *, config: DepthAdapterConfig, dtype: torch.dtype
) -> None:
    """Write the averaged adapter as the node loads it."""
    adapter = AdapterNetwork(config, device="meta")
    adapter.load_state_dict(dict(state), assign=True)
    save_adapter(folder / ADAPTER_FILE, adapter, {"licence": "Apache-2.0"}, dtype=dtype)
