"""Training a depth adapter alone on a frozen base, the paper's L_diff with F added to z_t; and the paper's
stage 1, L_depth: a spatial transformer beside a frozen MLLM.

A batch of an adapter has latent (b, c, h, w) of unit standard deviation, depth and mask (b, h s, w s), the
base's prompt tensors, each (b, k, ...) with a row per caption, and the latents of its references, all
encoded beforehand. A batch of a spatial transformer has depth and mask (b, h, w), and token ids (b, k, s),
padded on the right, with their lengths (b, k); with edits among the samples also source (b, H, W, 3) uint8,
of the size that the image encoder reads, and is_edit (b,). All random numbers come from the given generator,
on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from ..core.losses import masked_mean, masked_mean_each, sum_terms
from ..core.training.captions import put_empty
from ..core.training.loop import Batch, Task
from .config import DepthAdapterConfig, SpatialTransformerConfig
from .depth_code import code_depth
from .network import AdapterNetwork, InferredDepth, SemanticState, SpatialTransformer, plan_depth
from .weights import load_adapter, save_adapter, save_spatial_transformer

# what a run ships, in its output folder
ADAPTER_FILE, TRANSFORMER_FILE = "depth_adapter.safetensors", "spatial_transformer.safetensors"
INIT_STD = 0.02  # of a spatial transformer's matrices, as of language models
ReadPrompts = Callable[[Tensor, Tensor], SemanticState]  # token ids and attention mask (b, s) -> state


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
    level, noise = draw_noise(x0, generator, settings.least_noise)
    config = getattr(model, "module", model).config
    coded = code_depth(
        batch["depth"], batch["mask"], code=config.code, bound=config.bound, least_iqr=config.least_iqr
    )
    addend = model(coded, batch["mask"]).float()
    output = base.predict(base.add_noise(x0, noise, level) + addend, level, prompt)
    loss, logs = sum_terms({"image": F.mse_loss(output, base.target(x0, noise, level))})
    return loss, {**logs, "addend": addend.detach().square().mean().sqrt()}


def draw_noise(x0: Tensor, generator: Generator, least: float) -> tuple[Tensor, Tensor]:
    """Uniform noise levels (b,) from `least`, and the noise."""
    level = least + (1 - least) * torch.rand(len(x0), generator=generator)
    return level.to(x0.device), torch.randn(x0.shape, generator=generator).to(x0.device)


def draw_prompt(
    batch: Batch, names: tuple[str, ...], empty: Mapping[str, Tensor], generator: Generator, dropout: float
) -> dict[str, Tensor]:
    """The tensors of one caption of each image's k, in some images those of the empty prompt."""
    count, captions = batch[names[0]].shape[:2]
    choice = torch.randint(captions, (count,), generator=generator)
    dropped = torch.rand(count, generator=generator) < dropout
    return take_prompt(batch, names, empty, choice, dropped if dropout else None)


def take_prompt(
    batch: Batch, names: tuple[str, ...], empty: Mapping[str, Tensor], choice: Tensor, dropped: Tensor | None
) -> dict[str, Tensor]:
    """The tensors of caption `choice` (b,) of each image, of the empty one where it is `dropped` (b,)."""
    prompt = {}
    for name in names:
        rows = batch[name][torch.arange(len(choice)), choice.to(batch[name].device)]
        prompt[name] = rows if dropped is None else put_empty(rows, empty[name], dropped)
    return prompt


def export_adapter(
    folder: Path, state: Mapping[str, Tensor], *, config: DepthAdapterConfig, dtype: torch.dtype
) -> None:
    """Write the averaged adapter as the node loads it."""
    adapter = AdapterNetwork(config, device="meta")
    adapter.load_state_dict(dict(state), assign=True)
    save_adapter(folder / ADAPTER_FILE, adapter, {"licence": "Apache-2.0"}, dtype=dtype)


@dataclass(frozen=True)
class SpatialDepthLoss:
    """The `loss` settings of a recipe of a spatial transformer."""

    # of the error: of depth in units of its image's mean, as the paper has it, or of its logarithm
    space: Literal["linear", "log"] = "linear"
    # how fast confidence c falls with the error e: c e - confidence log c, without a gradient to the depth's
    # own output; 0 leaves the confidence untrained
    confidence: float = 0.2

    def __post_init__(self) -> None:
        if self.space not in ("linear", "log") or not 0 <= self.confidence < float("inf"):
            raise ValueError(
                "Expected space linear or log and confidence of at least 0 in the recipe's loss, got "
                f"{self.space!r} and {self.confidence}. Correct the recipe."
            )


def init_spatial_weights(network: SpatialTransformer, generator: Generator) -> None:
    """Normal initialization; norms at 1, queries of standard deviation 1, so that they differ by position."""
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if name == "queries":
                parameter.normal_(0, 1, generator=generator)
            elif name.startswith("depth_head.") and parameter.ndim == 4:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            elif parameter.ndim >= 2:
                parameter.normal_(0, INIT_STD, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith(("weight", "gamma")) else 0.0)


def build_spatial_task(
    *, network: SpatialTransformer, mllm: nn.Module, read: ReadPrompts, dataset: Any,
    settings: SpatialDepthLoss, ship: str = "float16",
) -> Task:  # fmt: skip
    """The Task of stage 1: the MLLM is frozen, and `read` gives its keys and values. `ship` names the
    precision of the file: a dtype, or int8, of large matrices alone."""
    return Task(
        model=network,
        loss=partial(spatial_loss, read=read, settings=settings),
        dataset=dataset,
        companions=(mllm.requires_grad_(False),),
        export=partial(export_spatial_transformer, config=network.config, ship=ship),
    )


def spatial_loss(
    model: nn.Module, batch: Batch, generator: Generator, *, read: ReadPrompts, settings: SpatialDepthLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_depth: mean absolute error over the valid pixels of each image, whose depth has a mean of 1."""
    config = getattr(model, "module", model).config
    ids, mask = draw_tokens(batch, generator)
    plan = plan_depth(config, tuple(batch["depth"].shape[1:]))
    image = None
    if "source" in batch:
        image = rearrange(batch["source"], "b h w c -> b c h w").float() / 255
    found = model(read(ids, mask), plan.grid, plan.size, image=image, edits=batch.get("is_edit"))
    return sum_terms(depth_terms(found, batch["depth"], batch["mask"], settings))


def depth_terms(
    found: InferredDepth, depth: Tensor, mask: Tensor, settings: SpatialDepthLoss
) -> dict[str, Tensor]:
    """The terms of L_depth by name."""
    predicted = found.depth.float()
    target, known = fit_target(depth, mask, tuple(predicted.shape[1:]))
    if settings.space == "log":
        predicted, target = predicted.log(), torch.where(known, target, 1.0).log()
    error = (predicted - target).abs()
    terms = {"depth": masked_mean_each(error, known)[0].mean()}
    if settings.confidence:
        confidence = found.confidence.float()
        doubt = confidence * error.detach() - settings.confidence * confidence.log()
        terms["confidence"] = masked_mean(doubt, known)
    return terms


def draw_tokens(batch: Batch, generator: Generator) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask (b, s) of one caption of each image's k, cut to the longest of them."""
    count, captions = batch["lengths"].shape
    return take_tokens(batch, torch.randint(captions, (count,), generator=generator))


def take_tokens(batch: Batch, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask (b, s) of caption `choice` (b,) of each image, cut to the longest."""
    choice = choice.to(batch["ids"].device)
    rows = torch.arange(len(choice), device=choice.device)
    ids, lengths = batch["ids"][rows, choice], batch["lengths"][rows, choice]
    ids = ids[:, : int(lengths.max())]
    mask = torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]
    return ids, mask.long()


def fit_target(depth: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Depth (b, h, w) of mean 1 over each image's valid pixels, 0 elsewhere, and the mask, at `size`.

    The nearest pixel counts: a mean over an edge would be a depth that is nowhere.
    """
    planes = torch.stack((torch.where(mask, depth, 0.0).float(), mask.float()), dim=1)
    values, known = F.interpolate(planes, tuple(size), mode="nearest-exact").unbind(1)
    known = known > 0.5
    mean = masked_mean_each(values, known)[0]
    return values / mean.clamp(min=1e-12)[:, None, None], known


def export_spatial_transformer(
    folder: Path, state: Mapping[str, Tensor], *, config: SpatialTransformerConfig, ship: str
) -> None:
    """Write the averaged spatial transformer as the node loads it."""
    network = SpatialTransformer(config, device="meta")
    network.load_state_dict(dict(state), assign=True)
    int8 = ship == "int8"
    dtype = torch.float16 if int8 else getattr(torch, ship)
    save_spatial_transformer(
        folder / TRANSFORMER_FILE, network, {"licence": "Apache-2.0"}, dtype=dtype, int8=int8
    )
