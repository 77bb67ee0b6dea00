"""The paper's stage 2: spatial transformer and depth adapter, perhaps with a LoRA of the base, learn together
that the image follows the depth that is inferred from its prompt: L = L_diff + weight L_depth.

A batch has what an adapter's has, and ids (b, k, s) and lengths (b, k), the tokens of the same captions. The
adapter reads the inferred depth, so L_diff reaches the spatial transformer through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..core.losses import sum_terms
from ..core.training.loop import Batch, Task
from .config import DepthAdapterConfig
from .depth_code import code_depth, resize_code
from .network import DepthPlan, InferredDepth, SemanticState, SpatialTransformer, plan_depth
from .training import (
    AdapterLoss,
    Denoiser,
    ReadPrompts,
    SpatialDepthLoss,
    depth_terms,
    draw_noise,
    take_prompt,
    take_tokens,
)


@dataclass(frozen=True)
class JointLoss:
    """The `loss` settings of a recipe."""

    image: AdapterLoss
    depth: SpatialDepthLoss
    weight: float = 0.5  # lambda, of L_depth

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(
                f"Expected a weight of at least 0 in the recipe's loss, got {self.weight}. Correct it."
            )


class InferringAdapter(nn.Module):
    """What is trained and saved: prompts to their depth, and the depth to what is added to z_t."""

    def __init__(self, transformer: SpatialTransformer, adapter: nn.Module):
        """`adapter` is an AdapterNetwork, or one with a LoRA."""
        super().__init__()
        self.transformer, self.adapter = transformer, adapter

    def forward(
        self, semantic: SemanticState, plan: DepthPlan, size: tuple[int, int]
    ) -> tuple[InferredDepth, Tensor]:
        """The depth of the plan's size, and the addend for images of `size` (height, width)."""
        found = self.transformer(semantic, plan.grid, plan.size)
        config: DepthAdapterConfig = self.adapter.config
        depth = found.depth.float()
        everywhere = torch.ones_like(depth, dtype=torch.bool)
        coded = code_depth(
            depth, everywhere, code=config.code, bound=config.bound, least_iqr=config.least_iqr
        )
        return found, self.adapter(*resize_code(coded, everywhere, size))


class CaptionedLatents(torch.utils.data.Dataset):
    """The samples of an adapter's folder with their captions' tokens; both list the same samples."""

    def __init__(self, latents: Any, captions: Any):
        self.latents, self.captions = latents, captions

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.captions[index]
        return {**self.latents[index], "ids": tokens["ids"], "lengths": tokens["lengths"]}


def build_joint_task(
    *, adapter: Task, spatial: Task, base: Denoiser, empty: Mapping[str, Tensor], read: ReadPrompts,
    settings: JointLoss,
) -> Task:  # fmt: skip
    """The Task of both: `adapter` for the base, perhaps with its LoRA, and `spatial`, stage 1's."""
    return Task(
        model=InferringAdapter(spatial.model, adapter.model),
        loss=partial(joint_loss, base=base, empty=empty, read=read, settings=settings),
        dataset=CaptionedLatents(adapter.dataset, spatial.dataset),
        companions=(*adapter.companions, *spatial.companions),
        export=partial(export_joint, adapter=adapter, spatial=spatial),
    )


def joint_loss(
    model: nn.Module, batch: Batch, generator: Generator, *, base: Denoiser, empty: Mapping[str, Tensor],
    read: ReadPrompts, settings: JointLoss,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """L_diff + weight L_depth. Where the caption is dropped the depth stays, as in every branch of CFG."""
    x0, dropout = batch["latent"].float(), settings.image.caption_dropout
    count, captions = batch["lengths"].shape
    choice = torch.randint(captions, (count,), generator=generator)
    dropped = torch.rand(count, generator=generator) < dropout
    prompt = take_prompt(batch, base.conditions, empty, choice, dropped if dropout else None)
    level, noise = draw_noise(x0, generator, settings.image.least_noise)
    size = tuple(batch["depth"].shape[1:])
    plan = plan_depth(getattr(model, "module", model).transformer.config, size)
    found, addend = model(read(*take_tokens(batch, choice)), plan, size)
    output = base.predict(base.add_noise(x0, noise, level) + addend.float(), level, prompt)
    terms = {"image": F.mse_loss(output, base.target(x0, noise, level))}
    for name, term in depth_terms(found, batch["depth"], batch["mask"], settings.depth).items():
        terms[name] = settings.weight * term
    loss, logs = sum_terms(terms)
    return loss, {**logs, "addend": addend.detach().float().square().mean().sqrt()}


def export_joint(folder: Path, state: Mapping[str, Tensor], *, adapter: Task, spatial: Task) -> None:
    """Write the averaged parts, each as its node loads it."""
    for part, task in (("adapter.", adapter), ("transformer.", spatial)):
        task.export(folder, {n.removeprefix(part): v for n, v in state.items() if n.startswith(part)})
