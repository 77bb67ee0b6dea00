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
from typing import Any, Literal, get_args

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
from ..network import PARTS, Backbone, couple, projections
from ..rows import BOTH, Rows, Stream
from .ranks import holding, measure_inputs, shorten
from .start import look_at_own_place

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
        if not set(self.ship_ranks) <= set(PARTS) or not all(
            0 <= rank <= self.rank for rank in self.ship_ranks.values()
        ):
            raise ValueError(
                f"The recipe's model has ship_rank {self.ship_rank} for a LoRA of rank {self.rank}; give 0 "
                f"to {self.rank}, or that for each of {', '.join(PARTS)}."
            )
        if not self.base:
            raise ValueError(
                "The recipe's model names no base; give it the folder of a diffusers pipeline, for example "
                "of SD2.1."
            )
        if self.places and (self.weights or self.places < 0 or self.rank < CODE):
            raise ValueError(
                f"The recipe's model has places {self.places}, rank {self.rank} and weights "
                f"{self.weights!r}; places starts a LoRA of rank {CODE} or more that goes on from none, and "
                "is above 0."
            )
        if self.rank < 1 or self.alpha < 0:
            raise ValueError(
                f"The recipe's model has rank {self.rank} and alpha {self.alpha}; give a rank of at least 1, "
                "alpha of at least 0."
            )
        for name, options in (
            ("names", get_args(Names)),
            ("precision", get_args(Precision)),
            ("ship", get_args(Ship)),
        ):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"The recipe's model has {name} {getattr(self, name)!r}; it is one of "
                    f"{', '.join(options)}."
                )

    @property
    def scale(self) -> float:
        return (self.alpha or self.rank) / self.rank

    @property
    def ship_ranks(self) -> Mapping[str, int]:
        """`ship_rank` by projection name."""
        return self.ship_rank if isinstance(self.ship_rank, Mapping) else dict.fromkeys(PARTS, self.ship_rank)

    def shipped_rank(self, path: str) -> int:
        """The shipped rank of the projection with this module path."""
        return next(
            (rank for part, rank in self.ship_ranks.items() if rank and path.endswith("." + part)), self.rank
        )


@dataclass(frozen=True)
class LoraLoss:
    """The `loss` settings of a recipe."""

    intrinsic_weight: float = 1.0  # lambda of equation 5
    domains: Domains = "both"
    noise: Noise = "independent"  # as in the paper; "shared": the same noise for both domains, as in sampling
    caption_dropout: float = 0.1  # probability of an empty prompt, for CFG

    def __post_init__(self) -> None:
        for name, options in (("domains", get_args(Domains)), ("noise", get_args(Noise))):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"The recipe's loss has {name} {getattr(self, name)!r}; it is one of "
                    f"{', '.join(options)}."
                )
        if self.intrinsic_weight <= 0 or not 0 <= self.caption_dropout <= 1:
            raise ValueError(
                f"The recipe's loss has intrinsic_weight {self.intrinsic_weight} and caption_dropout "
                f"{self.caption_dropout}; one must be above 0, the other from 0 to 1."
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
    """All trained parameters, named layers.<path with _ for .>.down and .up; `parts` is keyed by path."""

    def __init__(self, found: Mapping[str, Projection], settings: LoraSettings, generator: Generator):
        super().__init__()
        self.paths = tuple(found)
        made = {
            flat(path): LowRankLayer(found[path], settings.rank, settings.scale, generator)
            for path in self.paths
        }
        self.layers = nn.ModuleDict(made)

    @property
    def parts(self) -> dict[str, LowRankLayer]:
        return {path: self.layers[flat(path)] for path in self.paths}

    @torch.no_grad()
    def fill(self, given: Mapping[str, LowRank], name: str) -> None:
        """Load another run's LoRA; it must have every layer at this rank."""
        for path, layer in self.parts.items():
            if path not in given or given[path].down.shape != layer.down.shape:
                rank = f"rank {len(given[path].down)}" if path in given else "nothing"
                raise ValueError(
                    f"The LoRA {name} has {rank} for {path}, wanted rank {len(layer.down)}; set the recipe's "
                    "rank to the file's."
                )
            layer.down.copy_(given[path].down)
            layer.up.copy_(given[path].up * (given[path].scale / layer.scale))


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
            f"The recipe's preset is {recipe.preset!r}; an intrinsic LoRA is for one of "
            f"{', '.join(FAMILIES)}."
        )
    dataset, empty = open_folder(recipe.data, CONDITIONS[recipe.preset], loss)
    base = load_backbone(settings.base, recipe.preset, getattr(torch, settings.precision))
    base.network.requires_grad_(False)
    check_sample(dataset[0], base, recipe.data["folder"])
    found = projections(base.network)
    model = TrainedLora(found, settings, Generator().manual_seed(recipe.seed))
    if settings.weights:
        tensors, metadata = open_lora(settings.weights)
        given = read_lora(tensors, found, base=recipe.preset, name=settings.weights, metadata=metadata)
        model.fill(given, settings.weights)
    coupling, layers = couple(base.network, model.parts)
    if settings.checkpointing:
        base.network.enable_gradient_checkpointing(coupling.checkpoint)
    if settings.places:
        look_at_own_place(
            model.parts,
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
        raise ValueError("The recipe's data names no folder; make one with: spatialweave intrinsics encode")
    dataset = FolderDataset(data["folder"], keys=("latent", "intrinsic_latent", *conditions))
    if not loss.caption_dropout:
        return dataset, {}
    path = Path(data["folder"]) / EMPTY_PROMPT
    if not path.is_file():
        raise ValueError(
            f"{data['folder']} has no {EMPTY_PROMPT}, which caption_dropout needs; encode it anew, or set "
            "caption_dropout to 0."
        )
    empty = read_tensors(path)
    lacks = [name for name in conditions if name not in empty]
    if lacks:
        raise ValueError(f"{path} lacks {', '.join(lacks)}, which this base reads; encode the folder for it.")
    return dataset, {name: empty[name] for name in conditions}


def check_sample(sample: Mapping[str, Any], base: Backbone, folder: str) -> None:
    """ValueError unless the dataset was encoded for this base."""
    wanted = ("latent", "intrinsic_latent", *CONDITIONS[base.family])
    lacks = [name for name in wanted if name not in sample]
    if lacks:
        raise ValueError(
            f"The samples of {folder} lack {', '.join(lacks)}; make them with: spatialweave intrinsics encode"
        )
    latent, maps, width = (
        sample["latent"].shape,
        sample["intrinsic_latent"].shape,
        sample["context"].shape[-1],
    )
    if latent != maps or latent[0] != base.channels or width != base.context_width:
        raise ValueError(
            f"The samples of {folder} have latents {tuple(latent)} and {tuple(maps)} and prompts of width "
            f"{width}, but this {base.family} base wants two alike of {base.channels} channels and a width "
            f"of {base.context_width}; encode the folder for it."
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
    repeated = {name: torch.cat([part.float()] * len(streams)) for name, part in prompt.items()}
    with coupling.call(Rows(("prompt",), count, streams)):
        said = base.predict(rows, t.repeat(len(streams)), repeated)
    parts = {
        stream: F.mse_loss(guess, base.target(clean[stream], noise[stream], t))
        for stream, guess in zip(streams, said.chunk(len(streams)), strict=True)
    }
    parts["intrinsic"] = settings.intrinsic_weight * parts["intrinsic"]
    return sum_terms(parts)


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
    dtype, tensors, ranks = (
        getattr(torch, settings.ship),
        {},
        {path: settings.shipped_rank(path) for path in model.paths},
    )
    shorter = [path for path, rank in ranks.items() if rank < settings.rank]
    squares: dict[str, Tensor] = {}
    if shorter:
        with holding(model, state):
            squares = measure_inputs(base.network, shorter, dataset, partial(loss, model))
    for path, rank in ranks.items():
        down, up = (state[f"layers.{flat(path)}.{end}"] for end in ("down", "up"))
        down, up = (
            part.to(dtype)
            for part in (shorten(down, up, rank, squares[path]) if path in squares else (down, up))
        )
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
        facts = {"r": settings.rank, "lora_alpha": settings.scale * settings.rank, "target_modules": targets}
        facts["rank_pattern"] = {path: ranks[path] for path in shorter}
        facts["alpha_pattern"] = {path: settings.scale * ranks[path] for path in shorter}
        metadata["lora_adapter_metadata"] = json.dumps(
            {f"{base.component}.{name}": value for name, value in facts.items() if value}
        )
    write_tensors(folder / LORA_FILE, tensors, metadata, kind=f"intrinsic LoRA for {base.name}")
