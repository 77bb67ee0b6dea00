"""From a recipe to what the training loop takes: network and its initial weights, teacher, data, loss,
export.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Generator, Tensor, nn

from ...core.training.alignment import Aligner
from ...core.training.data import FolderDataset
from ...core.training.loop import Task
from ...core.training.recipe import Recipe
from ...core.training.resident import Constants
from ...core.training.settings import check_settings, read_settings
from ...core.weights.files import fill_module, read_tensors, write_tensors
from ..config import ModalityForcingConfig, find_preset
from ..depth_code import depth_to_net
from ..network import ModalityForcing
from ..weights import TRAINED_SIZE, load_network, read_base, read_network_config, save_network
from .loss import LossSettings, TrainedModel, loss
from .start import init_from_text_to_image, init_weights, widen_depth_head

ShipType = Literal["float32", "float16"]
NETWORK_FILE, TEXT_FILE = "network.safetensors", "text.safetensors"  # written to a run's output folder
# in a dataset folder with precomputed contexts: `context` (n, c), the encoding of ""
EMPTY_CONTEXT = "empty_context.safetensors"


@dataclass(frozen=True)
class ModelSettings:
    """The `model` section of a recipe. Without `base` and `weights` the network is initialized at random."""

    config: Mapping[str, Any] = field(default_factory=dict)  # overrides of the preset's fields
    base: str = ""  # text-to-image weights to initialize from, and the teacher's
    weights: str = ""  # or complete Modality Forcing weights to continue from
    text: str = ""  # initial weights of a text encoder that is trained as well
    distill: bool = False  # distill from the frozen `base`
    ship: ShipType = "float32"  # precision of the weights files a run writes; its checkpoints are float32

    def __post_init__(self) -> None:
        if self.base and self.weights:
            raise ValueError(
                "Expected base or weights in the recipe's model, got both. Keep the one that the network "
                "starts from."
            )
        if self.distill and not self.base:
            raise ValueError(
                "Expected a base in the recipe's model for distill (the frozen base is the teacher), got "
                "none. Give base, or leave distill out."
            )
        if self.ship not in get_args(ShipType):
            raise ValueError(
                f"Expected ship as one of {', '.join(get_args(ShipType))} in the recipe's model, got "
                f"{self.ship!r}. Choose one of them."
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSettings:
        return read_settings(cls, values, "recipe's model")


def build(
    recipe: Recipe,
    *,
    dataset: Any = None,
    text_encoder: nn.Module | None = None,
    empty_tokens: Tensor | None = None,
    classes: Sequence[int] = (),
) -> Task:
    """The Task of a recipe. `text_encoder`, if not None, is trained as well and reads the dataset's `tokens`,
    of which `empty_tokens` (n,) is the empty prompt; without one, samples have a `context`. Without a
    dataset, the folder named in the recipe is read. `classes`: number of classes of each kind of the samples'
    `cells`, for the alignment loss.
    """
    settings, start = LossSettings.from_json(recipe.loss), ModelSettings.from_json(recipe.model)
    config = replace(find_preset(recipe.preset), **check_config(start.config))
    generator = Generator().manual_seed(recipe.seed)
    dataset, extra = (dataset, {}) if dataset is not None else open_folder(recipe.data, settings)
    if text_encoder is not None:
        if start.text:
            fill_module(text_encoder, read_tensors(start.text), what=start.text)
        extra["empty_tokens"] = empty_tokens
    sample = dataset[0]
    check_sample(sample, text_encoder is not None, settings)
    aligner = make_aligner(config, classes, sample, settings, recipe.seed) if settings.align else None
    model = TrainedModel(start_network(config, start, generator), text_encoder, aligner)
    teacher = make_teacher(model) if start.distill else None
    constants = Constants(extra)
    return Task(
        model=model,
        loss=constants.bind(partial(training_loss, settings=settings, teacher=teacher), "extra"),
        dataset=dataset,
        companions=(constants, teacher) if teacher else (constants,),
        export=partial(
            export,
            config=config,
            trained=settings.kind,
            size=max(sample["latent"].shape[-2:]) * config.depth_patch,
            dtype=getattr(torch, start.ship),
        ),
        draws_there=True,
        captures=True,
    )


def make_aligner(
    config: ModalityForcingConfig,
    classes: Sequence[int],
    sample: Mapping[str, Any],
    settings: LossSettings,
    seed: int,
) -> Aligner:
    if not classes or "cells" not in sample:
        raise ValueError(
            "Expected a dataset with `cells`, the class of each spot, for the loss's align, got one "
            "without. Leave align out."
        )
    if settings.align_block >= config.num_single_blocks:
        last = config.num_single_blocks - 1
        raise ValueError(
            f"Expected the loss's align_block from 0 to {last}, the network's last single block, got "
            f"{settings.align_block}. Lower align_block."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Aligner(config.hidden_size, classes, sample["cells"].shape[-1] // sample["latent"].shape[-1])


def check_config(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    return check_settings(changes, get_type_hints(ModalityForcingConfig), "recipe's model.config")


def start_network(
    config: ModalityForcingConfig, start: ModelSettings, generator: Generator
) -> ModalityForcing:
    """In float32, so that the optimizer's small updates are not rounded away."""
    if start.weights:
        stored = replace(config, depth_head_kernel=read_network_config(start.weights).depth_head_kernel)
        return widen_depth_head(load_network(start.weights, config=stored, dtype=torch.float32)[0], config)
    network = ModalityForcing(config)
    if start.base:
        init_from_text_to_image(network, read_base(start.base, config), generator)
    else:
        init_weights(network, generator)
    return network


def make_teacher(model: TrainedModel) -> TrainedModel:
    """A frozen copy of the initial model: its image stream is the base."""
    teacher = copy.deepcopy(model).requires_grad_(False)
    return teacher.train(False)


def open_folder(data: Mapping[str, Any], settings: LossSettings) -> tuple[FolderDataset, dict[str, Tensor]]:
    """A dataset folder of `latent`, `context` and, for depth, `depth`, and the empty prompt's context."""
    check_settings(data, {"folder": str}, "recipe's data")
    if not data.get("folder"):
        raise ValueError("Expected a folder in the recipe's data, got none. Give it the folder of a dataset.")
    dataset = FolderDataset(data["folder"], keys=("latent", "context", "depth", "mask"))
    empty = Path(data["folder"]) / EMPTY_CONTEXT
    if not settings.caption_dropout:
        return dataset, {}
    if not empty.is_file():
        raise ValueError(
            f"Expected {EMPTY_CONTEXT} in {data['folder']}, which caption_dropout needs, got none. Write "
            "it, or set caption_dropout to 0."
        )
    return dataset, {"empty_context": read_tensors(empty)["context"]}


def check_sample(sample: Mapping[str, Any], has_text_encoder: bool, settings: LossSettings) -> None:
    expected = ["latent", "tokens" if has_text_encoder else "context"]
    if settings.kind == "modality_forcing" and "depth_net" not in sample:
        expected.append("depth")
    missing = [key for key in expected if key not in sample]
    if missing:
        raise ValueError(
            f"Expected samples with {', '.join(expected)} for this loss, got {', '.join(sample)}. Add "
            f"{', '.join(missing)} to the dataset."
        )


def training_loss(
    model,
    batch,
    generator,
    *,
    settings: LossSettings,
    teacher: TrainedModel | None,
    extra: Mapping[str, Tensor],
):
    """The loss of a batch of the dataset: depth in meters is encoded into network space here."""
    if "depth" in batch and "depth_net" not in batch:
        mask = batch["mask"][:, None]
        batch = {**batch, "depth_net": depth_to_net(batch["depth"][:, None], mask), "mask": mask}
    device = batch["latent"].device
    moved = {name: value.to(device) for name, value in extra.items()}  # as they are, if they lie there
    batch = {**batch, "latent": batch["latent"].float(), **moved}
    return loss(model, batch, generator, settings=settings, teacher=teacher)


def export(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    config: ModalityForcingConfig,
    trained: str,
    size: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the averaged weights under the released names, and those of a text encoder that was trained as
    well. `size`: the side in pixels of the images.
    """
    parts = {
        part: {
            name.removeprefix(f"{part}."): value
            for name, value in state.items()
            if name.startswith(f"{part}.")
        }
        for part in ("network", "text_encoder")
    }
    network = fill_module(ModalityForcing(config, device="meta"), parts["network"], what="the training state")
    notes = {"trained": trained, TRAINED_SIZE: str(size)}
    save_network(folder / NETWORK_FILE, network, config, notes, dtype=dtype)
    if parts["text_encoder"]:
        text = {name: value.to(dtype) for name, value in parts["text_encoder"].items()}
        write_tensors(folder / TEXT_FILE, text, {}, kind="text encoder")
