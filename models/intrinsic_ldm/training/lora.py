"""Training the intrinsic LoRA on a frozen base model: equation 5 of the paper.

Images and their maps are rows of one batch, coupled in the base's self-attention with w = 1. Only the LoRA
trains, and it acts on the map rows only; the image's loss term trains it, too, through the maps' keys and
values that image queries attend to.

A batch has latent and intrinsic_latent (b, c, h, w) of unit standard deviation and the base's prompt tensors
(`CONDITIONS`), all computed beforehand by `spatialweave intrinsics encode`. All random numbers come from the
given generator, on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ...core.losses import sum_terms
from ...core.training.alignment import CODE
from ...core.training.captions import put_empty
from ...core.training.data import FolderDataset
from ...core.training.loop import Batch, Task
from ...core.training.recipe import Recipe
from ...core.training.settings import check_settings, read_settings
from ...core.weights.files import read_tensors, write_tensors
from ..attention import Coupling
from ..backbones import load_backbone
from ..config import CONDITIONS, FAMILIES, Noise
from ..lora import LowRank, Projection, open_lora, read_lora
from ..network import PROJECTIONS, Backbone, couple, projections
from ..rows import BOTH, Rows, Stream
from .ranks import measure_inputs, truncate_svd, with_weights
from .start import attend_to_own_position

Domains = Literal["both", "intrinsic"]
Names = Literal["peft", "kohya"]
Precision = Literal["float32", "bfloat16"]
Ship = Literal["float32", "float16", "bfloat16"]
LORA_FILE = "intrinsic_lora.safetensors"  # in the run's output folder
EMPTY_PROMPT = "empty_context.safetensors"  # in the dataset folder: tensors of the prompt "", no first axis


@dataclass(frozen=True)
class LoraSettings:
    """The `model` settings of a recipe."""

    base: str = ""  # folder of a pipeline in diffusers' layout
    rank: int = 32
    alpha: float = 0.0  # the LoRA's scale is alpha / rank; 0 sets alpha to the rank (scale 1)
    weights: str = ""  # an intrinsic LoRA to continue from, instead of one with zero update
    # initial logit gain of the key at a query's own position over the mean; 0 is LoRA's usual zero update
    places: float = 0.0
    precision: Precision = "float32"  # of the frozen base
    checkpointing: bool = False  # gradient checkpointing of the base's blocks
    names: Names = "peft"  # key format of the shipped file; both can be read
    ship: Ship = "float32"
    # rank of the shipped file, for all projections or by name; 0 or a missing name keeps the trained rank
    ship_rank: int | Mapping[str, int] = 0

    def __post_init__(self) -> None:
        if not set(self.ship_ranks) <= set(PROJECTIONS) or not all(
            0 <= rank <= self.rank for rank in self.ship_ranks.values()
        ):
            raise ValueError(
                f"Expected ship_rank of the recipe's model from 0 to {self.rank}, the LoRA's rank, or that "
                f"for each of {', '.join(PROJECTIONS)}, got {self.ship_rank}. Correct the recipe."
            )
        if not self.base:
            raise ValueError(
                "Expected the folder of a diffusers pipeline as base of the recipe's model, got none. Name "
                "one, for example of SD2.1."
            )
        if self.places and (self.weights or self.places < 0 or self.rank < CODE):
            raise ValueError(
                f"Expected places of the recipe's model to be 0, or above 0 with rank {CODE} or more and "
                f"without weights, got places {self.places}, rank {self.rank} and weights {self.weights!r}. "
                "Correct the recipe."
            )
        if self.rank < 1 or self.alpha < 0:
            raise ValueError(
                "Expected rank of at least 1 and alpha of at least 0 in the recipe's model, got rank "
                f"{self.rank} and alpha {self.alpha}. Correct the recipe."
            )

    @property
    def scale(self) -> float:
        return (self.alpha or self.rank) / self.rank

    @property
    def ship_ranks(self) -> Mapping[str, int]:
        """`ship_rank` by projection name."""
        if isinstance(self.ship_rank, Mapping):
            return self.ship_rank
        return dict.fromkeys(PROJECTIONS, self.ship_rank)

    def shipped_rank(self, path: str) -> int:
        """The shipped rank of the projection with this module path."""
        return next(
            (rank for name, rank in self.ship_ranks.items() if rank and path.endswith("." + name)), self.rank
        )


@dataclass(frozen=True)
class LoraLoss:
    """The `loss` settings of a recipe."""

    intrinsic_weight: float = 1.0  # lambda of equation 5
    domains: Domains = "both"
    noise: Noise = "independent"  # as in the paper; "shared": the same noise for both domains, as in sampling
    caption_dropout: float = 0.1  # probability of an empty prompt, for CFG

    def __post_init__(self) -> None:
        if self.intrinsic_weight <= 0 or not 0 <= self.caption_dropout <= 1:
            raise ValueError(
                "Expected intrinsic_weight above 0 and caption_dropout from 0 to 1 in the recipe's loss, got "
                f"{self.intrinsic_weight} and {self.caption_dropout}. Correct the recipe."
            )

    @property
    def streams(self) -> tuple[Stream, ...]:
        return BOTH if self.domains == "both" else ("intrinsic",)


class LowRankLayer(nn.Module):
    """The low-rank update of one projection in training; as usual, down is random and up starts at 0."""

    def __init__(self, projection: Projection, rank: int, scale: float, generator: Generator):
        super().__init__()
        reach = projection.inputs**-0.5
        self.down = nn.Parameter((torch.rand(rank, projection.inputs, generator=generator) * 2 - 1) * reach)
        self.up = nn.Parameter(torch.zeros(projection.outputs, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return LowRank(self.down, self.up, self.scale)(x)


class TrainedLora(nn.Module):
    """All trained parameters, named layers.<path with _ for .>.down and .up; `updates` is keyed by path."""

    def __init__(self, projections: Mapping[str, Projection], settings: LoraSettings, generator: Generator):
        super().__init__()
        self.paths = tuple(projections)
        self.layers = nn.ModuleDict(
            {
                flat(path): LowRankLayer(projections[path], settings.rank, settings.scale, generator)
                for path in self.paths
            }
        )

    @property
    def updates(self) -> dict[str, LowRankLayer]:
        return {path: self.layers[flat(path)] for path in self.paths}

    @torch.no_grad()
    def fill(self, loaded: Mapping[str, LowRank], name: str) -> None:
        """Load another run's LoRA; it must have every layer at this rank."""
        for path, layer in self.updates.items():
            if path not in loaded or loaded[path].down.shape != layer.down.shape:
                rank = f"rank {len(loaded[path].down)}" if path in loaded else "nothing"
                raise ValueError(
                    f"Expected rank {len(layer.down)} for {path} in the LoRA {name}, as the recipe's model "
                    f"says, got {rank}. Set the recipe's rank to the file's."
                )
            layer.down.copy_(loaded[path].down)
            layer.up.copy_(loaded[path].up * (loaded[path].scale / layer.scale))


def flat(path: str) -> str:
    return path.replace(".", "_")


def build(recipe: Recipe) -> Task:
    """The Task of a recipe.

    `preset` is the base's family, `data.folder` the output of `spatialweave intrinsics encode`.
    """
    settings = read_settings(LoraSettings, recipe.model, "recipe's model")
    loss = read_settings(LoraLoss, recipe.loss, "recipe's loss")
    check_settings(recipe.data, {"folder": str}, "recipe's data")
    if recipe.preset not in FAMILIES:
        raise ValueError(
            f"Expected preset of the recipe as one of {', '.join(FAMILIES)}, got {recipe.preset!r}. Choose "
            "one of these."
        )
    dataset, empty = open_folder(recipe.data, CONDITIONS[recipe.preset], loss)
    base = load_backbone(settings.base, recipe.preset, getattr(torch, settings.precision))
    base.network.requires_grad_(False)
    check_sample(dataset[0], base, recipe.data["folder"])
    found = projections(base.network)
    model = TrainedLora(found, settings, Generator().manual_seed(recipe.seed))
    if settings.weights:
        tensors, metadata = open_lora(settings.weights)
        loaded = read_lora(tensors, found, base=recipe.preset, name=settings.weights, metadata=metadata)
        model.fill(loaded, settings.weights)
    coupling, layers = couple(base.network, model.updates)
    if settings.checkpointing:
        base.network.enable_gradient_checkpointing(coupling.checkpoint)
    if settings.places:
        attend_to_own_position(
            model.updates,
            layers,
            base,
            coupling,
            dataset,
            settings.places,
            Generator().manual_seed(recipe.seed),
        )
    in_training = partial(lora_loss, base=base, coupling=coupling, settings=loss, empty=empty)
    return Task(
        model=model,
        loss=in_training,
        dataset=dataset,
        companions=(base.network,),
        export=partial(export, model=model, base=base, dataset=dataset, settings=settings, loss=in_training),
    )


def open_folder(
    data: Mapping[str, Any], conditions: tuple[str, ...], loss: LoraLoss
) -> tuple[FolderDataset, dict[str, Tensor]]:
    """The encoded dataset, and the tensors of the empty prompt if the loss uses caption dropout."""
    if not data.get("folder"):
        raise ValueError(
            "Expected a folder in the recipe's data, got none. Write one with: spatialweave intrinsics encode"
        )
    dataset = FolderDataset(data["folder"], keys=("latent", "intrinsic_latent", *conditions))
    if not loss.caption_dropout:
        return dataset, {}
    path = Path(data["folder"]) / EMPTY_PROMPT
    if not path.is_file():
        raise ValueError(
            f"Expected {EMPTY_PROMPT} in {data['folder']}, which caption_dropout needs, got none. Encode the "
            "folder again, or set caption_dropout to 0."
        )
    empty = read_tensors(path)
    lacks = [name for name in conditions if name not in empty]
    if lacks:
        raise ValueError(
            f"Expected {', '.join(conditions)} in {path}, as this base takes them, got none for "
            f"{', '.join(lacks)}. Encode the folder for this base."
        )
    return dataset, {name: empty[name] for name in conditions}


def check_sample(sample: Mapping[str, Any], base: Backbone, folder: str) -> None:
    """ValueError unless the dataset was encoded for this base."""
    required = ("latent", "intrinsic_latent", *CONDITIONS[base.family])
    lacks = [name for name in required if name not in sample]
    if lacks:
        raise ValueError(
            f"Expected samples with {', '.join(required)} in {folder}, got none for {', '.join(lacks)}. "
            "Write them with: spatialweave intrinsics encode"
        )
    latent, maps, width = (
        sample["latent"].shape,
        sample["intrinsic_latent"].shape,
        sample["context"].shape[-1],
    )
    if latent != maps or latent[0] != base.channels or width != base.context_width:
        raise ValueError(
            f"Expected samples of a {base.family} base in {folder}, with two latents of one shape and "
            f"{base.channels} channels and a context of width {base.context_width}, got {tuple(latent)}, "
            f"{tuple(maps)} and width {width}. Encode the folder for this base."
        )


def lora_loss(
    model: TrainedLora, batch: Batch, generator: Generator, *, base: Backbone, coupling: Coupling,
    settings: LoraLoss,
    empty: Mapping[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Mean squared error of the model output per stream: one timestep for both, separate noise unless shared.

    `model` trains through `coupling`, which the base's layers call; w is 1 in every layer, as in the paper.
    """
    clean = {"image": batch["latent"].float(), "intrinsic": batch["intrinsic_latent"].float()}
    count, streams = len(clean["image"]), settings.streams
    prompt = draw_prompts(batch, CONDITIONS[base.family], empty, generator, settings.caption_dropout)
    t = torch.randint(base.steps, (count,), generator=generator).to(clean["image"].device)
    noise = {stream: torch.randn(x.shape, generator=generator).to(x.device) for stream, x in clean.items()}
    if settings.noise == "shared":
        noise["intrinsic"] = noise["image"]

    rows = torch.cat([base.add_noise(clean[stream], noise[stream], t) for stream in streams])
    # float32 first: float16 tensors cannot be concatenated under bfloat16 autocast
    repeated = {name: torch.cat([value.float()] * len(streams)) for name, value in prompt.items()}
    with coupling.call(Rows(("prompt",), count, streams)):
        outputs = base.predict(rows, t.repeat(len(streams)), repeated).chunk(len(streams))
    terms = {
        stream: F.mse_loss(output, base.target(clean[stream], noise[stream], t))
        for stream, output in zip(streams, outputs, strict=True)
    }
    terms["intrinsic"] = settings.intrinsic_weight * terms["intrinsic"]
    return sum_terms(terms)


def draw_prompts(
    batch: Batch, names: tuple[str, ...], empty: Mapping[str, Tensor], generator: Generator, dropout: float
) -> dict[str, Tensor]:
    """Each image's prompt, randomly replaced by the empty one."""
    dropped = torch.rand(len(batch["context"]), generator=generator) < dropout
    if not dropout:
        return {name: batch[name] for name in names}
    return {name: put_empty(batch[name], empty[name], dropped) for name in names}


def export(
    folder: Path, state: Mapping[str, Tensor], *, model: TrainedLora, base: Backbone, dataset: FolderDataset,
    settings: LoraSettings,
    loss: Callable[[TrainedLora, Batch, Generator], Any],
) -> None:  # fmt: skip
    """Write the averaged LoRA as one file, in PEFT's or kohya's key format."""
    dtype, tensors = getattr(torch, settings.ship), {}
    ranks = {path: settings.shipped_rank(path) for path in model.paths}
    shorter = [path for path, rank in ranks.items() if rank < settings.rank]
    squares: dict[str, Tensor] = {}
    if shorter:
        with with_weights(model, state):
            squares = measure_inputs(base.network, shorter, dataset, partial(loss, model))
    for path, rank in ranks.items():
        down, up = (state[f"layers.{flat(path)}.{end}"] for end in ("down", "up"))
        if path in squares:
            down, up = truncate_svd(down, up, rank, squares[path])
        down, up = down.to(dtype), up.to(dtype)
        if settings.names == "peft":
            tensors |= {
                f"{base.component}.{path}.lora_A.weight": down,
                f"{base.component}.{path}.lora_B.weight": up,
            }
        else:
            name = f"lora_{base.component}_{flat(path)}"
            alpha = torch.tensor(settings.scale * rank)
            tensors |= {
                f"{name}.lora_down.weight": down,
                f"{name}.lora_up.weight": up,
                f"{name}.alpha": alpha,
            }
    metadata = {"base": base.name}
    if settings.names == "peft":
        targets = sorted({path.rpartition("attn1.")[2] for path in ranks})
        config = {"r": settings.rank, "lora_alpha": settings.scale * settings.rank, "target_modules": targets}
        config["rank_pattern"] = {path: ranks[path] for path in shorter}
        config["alpha_pattern"] = {path: settings.scale * ranks[path] for path in shorter}
        metadata["lora_adapter_metadata"] = json.dumps(
            {f"{base.component}.{name}": value for name, value in config.items() if value}
        )
    write_tensors(folder / LORA_FILE, tensors, metadata, kind=f"intrinsic LoRA for {base.name}")
