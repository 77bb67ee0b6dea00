"""Training of a small editor with its text encoder, from nothing: the base that the connector is trained on.

With Flux-Kontext as the base none of this is needed. A batch has `latent`, `reference`, `tokens` and, for the
alignment, `cells`: see `data.encode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from torch import Generator, Tensor, nn

from ...core.losses import sum_terms
from ...core.training.alignment import Aligner, collect_activations
from ...core.training.captions import draw_captions
from ...core.training.loop import Task
from ...core.training.recipe import Recipe
from ...core.training.resident import Constants
from ...core.training.settings import check_settings, read_settings
from ...tiny.text import TinyTextEncoder
from ..editor_files import (
    EDITOR_FILE,
    TEXT_FILE,
    load_editor,
    load_text,
    new_text_encoder,
    save_editor,
    save_text,
)
from ..flux import PRESETS, Flux, FluxConfig
from ..grammar import tokenize_instructions
from .loss import (
    Batch,
    NoiseLevels,
    check_not_negative,
    check_probability,
    choose_attention,
    draw_noisy,
    flow_error,
    weigh_changes,
)

NEEDS = ("latent", "reference", "tokens")


@dataclass(frozen=True)
class EditorSettings:
    """The `model` settings of a recipe. Without `weights` the network starts from nothing."""

    config: Mapping[str, Any] = field(default_factory=dict)  # changes to the preset
    weights: str = ""  # an editor's file to go on from
    text: str = ""  # and its text encoder's
    # of the files written; int8: the network's matrices in eight bits, all else in float16
    ship: Literal["float32", "float16", "int8"] = "float16"

    def __post_init__(self) -> None:
        if bool(self.weights) != bool(self.text):
            raise ValueError(
                "Expected weights and text together in the recipe's model, got one of them. Name both files."
            )


@dataclass(frozen=True)
class EditorLoss:
    """The `loss` settings of a recipe."""

    caption_dropout: float = 0.1  # probability of the empty instruction, for CFG
    changed: float = 4.0  # weight of the latent's cells that the edit changes, relative to the others
    align: float = 0.5  # weight of the cross-entropy of the target's cells, predicted from a single block
    align_block: int = 2
    mu: float = 0.5
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_probability("caption_dropout", self.caption_dropout)
        check_not_negative(
            changed=self.changed, align=self.align, sigma=self.sigma, align_block=self.align_block
        )


class TrainedEditor(nn.Module):
    """What is trained: the network, its text encoder, and the alignment's head."""

    def __init__(self, network: Flux, text_encoder: TinyTextEncoder, aligner: Aligner | None):
        super().__init__()
        self.network, self.text_encoder, self.aligner = network, text_encoder, aligner


def build_editor(recipe: Recipe, *, dataset: Any, classes: Sequence[int] = ()) -> Task:
    """The Task of a recipe. `classes`: how many classes each kind of the samples' `cells` has."""
    start = read_settings(EditorSettings, recipe.model, "recipe's model")
    settings = read_settings(EditorLoss, recipe.loss, "recipe's loss")
    config = find_config(recipe.preset, start.config)
    sample = dataset[0]
    check_sample(sample, config, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if start.weights:
            network = load_editor(start.weights, config=config, dtype=torch.float32)
            text_encoder = load_text(start.text, config.context_in_dim)
        else:
            network, text_encoder = Flux(config), new_text_encoder(config.context_in_dim)
            init_weights(network, Generator().manual_seed(recipe.seed))
        aligner = None
        if settings.align:
            aligner = Aligner(
                config.hidden_size, classes, sample["cells"].shape[-1] // sample["latent"].shape[-1]
            )
    constants = Constants({"empty": tokenize_instructions([""])[0]})
    return Task(
        model=TrainedEditor(network, text_encoder, aligner),
        loss=constants.bind(partial(editor_loss, settings=settings)),
        dataset=dataset,
        companions=(constants,),
        export=partial(export_editor, config=config, ship=start.ship),
        draws_there=True,
        captures=True,
    )


def find_config(preset: str, changes: Mapping[str, Any]) -> FluxConfig:
    if preset not in PRESETS:
        raise ValueError(f"Expected a preset from {', '.join(PRESETS)}, got {preset!r}. Choose one of these.")
    return replace(
        PRESETS[preset], **check_settings(changes, get_type_hints(FluxConfig), "recipe's model.config")
    )


def check_sample(sample: Mapping[str, Any], config: FluxConfig, settings: EditorLoss) -> None:
    """ValueError unless the dataset was encoded for this network and loss."""
    needs = [*NEEDS, *(["cells"] if settings.align else [])]
    missing = [key for key in needs if key not in sample]
    if missing:
        raise ValueError(
            f"Expected samples with {', '.join(needs)}, got none of {', '.join(missing)}. Encode the edits "
            "with: spatialweave spatial_diff encode"
        )
    if sample["latent"].shape != sample["reference"].shape or len(sample["latent"]) != config.in_channels:
        raise ValueError(
            f"Expected latent and reference of {config.in_channels} channels and one size, got "
            f"{tuple(sample['latent'].shape)} and {tuple(sample['reference'].shape)}. Encode the edits for "
            "this network."
        )
    if settings.align and settings.align_block >= config.depth_single_blocks:
        raise ValueError(
            f"Expected align_block below {config.depth_single_blocks}, the network's single blocks, got "
            f"{settings.align_block}. Lower it."
        )


@torch.no_grad()
def init_weights(network: Flux, generator: Generator) -> None:
    """Every block starts as the identity, and the output at 0."""
    for name, parameter in network.named_parameters():
        if name.endswith("norm.scale"):
            parameter.fill_(1.0)
        elif parameter.ndim < 2 or "_mod." in name or "modulation" in name.lower() or "final_layer" in name:
            parameter.zero_()
        else:
            drawn = torch.empty(parameter.shape)
            nn.init.trunc_normal_(drawn, std=parameter.shape[1] ** -0.5, a=-2, b=2, generator=generator)
            parameter.copy_(drawn)


def editor_loss(
    model: TrainedEditor, batch: Batch, generator: Generator, *, settings: EditorLoss, empty: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted error of the velocity, and the alignment."""
    words = {"tokens": batch["tokens"], "empty_tokens": empty.to(batch["tokens"].device)}
    context = model.text_encoder(draw_captions(words, generator, settings.caption_dropout))
    x, t, expected = draw_noisy(batch, NoiseLevels(settings.mu, settings.sigma), generator)
    block = model.network.single_blocks[settings.align_block] if model.aligner else None
    with collect_activations(block) as activations:
        out = model.network(
            x, t, context, [batch["reference"].float()], attend=choose_attention(x.device)
        ).velocity
    terms = {"velocity": flow_error(out, expected, weigh_changes(batch, settings.changed))}
    if model.aligner is not None:
        text, count = context.shape[1], x.shape[-2] * x.shape[-1] // model.network.config.patch_size**2
        rows = activations[0][:, text : text + count]
        terms["align"] = settings.align * model.aligner(rows, batch["cells"])
    loss, logs = sum_terms(terms)
    return loss, logs | {"plain": flow_error(out.detach(), expected)}


def export_editor(
    folder: Path, state: Mapping[str, Tensor], *, config: FluxConfig, ship: str
) -> None:
    """Write the averaged weights as they ship: the network, and its text encoder."""
    parts = {
        part: {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
        for part in ("network.", "text_encoder.")
    }
    int8 = ship == "int8"
    dtype = torch.float16 if int8 else getattr(torch, ship)
    save_editor(folder / EDITOR_FILE.name, parts["network."], config, dtype=dtype, int8=int8)
    save_text(folder / TEXT_FILE.name, parts["text_encoder."], dtype=dtype)
