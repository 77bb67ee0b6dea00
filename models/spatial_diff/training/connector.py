"""SpatialDiff's training: the connector alone, then with a LoRA of the frozen editor and the depth head.

Stage "connector" trains the connector by the velocity's error. Stage "lora" trains connector, LoRA and, with
depth supervision, the head: error + weight * || head(rows) - depth ||^2, where rows are the geometry tokens
behind the last block. Without `tokens` the LoRA trains alone, as the ladder's second rung.

A batch has `latent`, `reference`, what the text encoder gave, and of `data.geometry` `geometry`,
`depth_latent`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ...core.layers.blocks import checkpointed, run_block
from ...core.losses import sum_terms
from ...core.training.captions import put_empty
from ...core.training.data import FolderDataset
from ...core.training.loop import Task, find_device
from ...core.training.recipe import Recipe
from ...core.training.settings import check_settings, read_settings
from ...core.training.sharding import make_mesh, shard_unit
from ...tiny.weights import load_codec
from ..config import ConnectorConfig, find_preset
from ..data.geometry import GuidedEdits
from ..editor_files import load_editor, load_text
from ..flux import ExtraTokens, Flux, sequence_ids
from ..grammar import tokenize_instructions
from ..lora import LowRankLayers, read_editor_lora, save_lora
from ..network import GeometryConnector, LatentDepthHead
from ..tokens import spread_ids
from ..weights import load_connector, load_depth_head, save_connector
from . import estimate
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

Stage = Literal["connector", "lora"]
Depth = Literal["none", "latent", "pixels"]


@dataclass(frozen=True)
class StageSettings:
    """The `model` settings of a recipe."""

    base: str = ""  # the frozen editor: FLUX.1's names, such as flux1-kontext-dev.safetensors
    text: str = ""  # the tiny editor's text encoder; "" where the dataset has contexts
    stage: Stage = "connector"
    tokens: bool = True  # geometry tokens join the sequence
    connector: Mapping[str, Any] = field(default_factory=dict)  # changes to the preset
    weights: str = ""  # a connector's file to go on from
    lora: str = ""  # and a LoRA's, of the same rank
    rank: int = 64
    alpha: float = 64.0  # the LoRA's scale is alpha / rank
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen editor
    checkpointing: bool = True  # recompute each block in the backward pass
    shard: bool = False  # of several processes each keeps its part of the frozen weights (FSDP2)
    # of the files written; int8: the connector's matrices in eight bits, all else in float16
    ship: Literal["float32", "float16", "bfloat16", "int8"] = "bfloat16"

    def __post_init__(self) -> None:
        if not self.base:
            raise ValueError(
                "Expected a base in the recipe's model, got none. Give the editor's file, such as "
                "flux1-kontext-dev.safetensors."
            )
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                "Expected a rank of at least 1 and an alpha above 0 in the recipe's model, got rank "
                f"{self.rank} and alpha {self.alpha}. Correct them."
            )
        if self.stage == "connector" and (not self.tokens or self.lora):
            raise ValueError(
                "Expected tokens and no lora in the recipe's model for the stage connector, got others. "
                "Choose the stage lora."
            )
        if self.weights and not self.tokens:
            raise ValueError("Expected no weights of a connector without tokens, got some. Leave them out.")


@dataclass(frozen=True)
class StageLoss:
    """The `loss` settings of a recipe."""

    depth: Depth = "latent"  # supervision of the tokens' rows, in stage "lora"; "pixels" is the paper's EDS
    weight: float = 0.01  # the paper's lambda
    caption_dropout: float = 0.1  # of the tiny editor, which is sampled with CFG; Flux-Kontext needs none
    guidance: float = 1.0  # what a guidance-distilled editor is told
    changed: float = 1.0  # weight of the latent's cells that the edit changes, relative to the others
    mu: float = 0.5
    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_probability("caption_dropout", self.caption_dropout)
        check_not_negative(weight=self.weight, changed=self.changed, sigma=self.sigma, guidance=self.guidance)


class TrainedParts(nn.Module):
    """What is trained and saved; the frozen editor is not among it."""

    def __init__(
        self, connector: GeometryConnector | None, head: LatentDepthHead | None, lora: LowRankLayers | None
    ):
        super().__init__()
        self.connector, self.head, self.lora = connector, head, lora


class FrozenEditor(nn.Module):
    """The editor; the tiny text encoder, if it has one; the tiny codec for the loss in pixels."""

    def __init__(self, network: Flux, text_encoder: nn.Module | None, codec: nn.Module | None):
        super().__init__()
        self.network, self.text_encoder, self.codec = network, text_encoder, codec
        self.requires_grad_(False).train(False)


def build_stage(recipe: Recipe) -> Task:
    """The Task of a recipe of either stage."""
    settings = read_settings(StageSettings, recipe.model, "recipe's model")
    loss = read_settings(StageLoss, recipe.loss, "recipe's loss")
    if settings.stage == "connector" or not settings.tokens:
        loss = replace(loss, depth="none")
    dataset = open_encoded(recipe.data, settings, loss)
    editor = load_frozen(settings, loss)
    parts = make_parts(recipe, settings, loss, editor.network)
    check_encoded_sample(dataset[0], editor.network, parts.connector, settings)
    if parts.lora is not None:
        parts.lora.attach(editor.network)
    report_run(recipe, settings, dataset, editor.network, parts)
    return Task(
        model=parts,
        loss=partial(
            stage_loss,
            editor=editor,
            settings=loss,
            run=checkpointed if settings.checkpointing else run_block,
        ),
        dataset=dataset,
        companions=(editor,),
        export=partial(
            export_stage, settings=settings, config=parts.connector and parts.connector.config,
            preset=recipe.preset,
        ),  # fmt: skip
    )


def open_encoded(data: Mapping[str, Any], settings: StageSettings, loss: StageLoss) -> Any:
    """The encoded dataset, with its geometry if tokens are used."""
    check_settings(data, {"folder": str, "geometry": str}, "recipe's data")
    folders = [key for key in ("folder", *(("geometry",) if settings.tokens else ())) if not data.get(key)]
    if folders:
        raise ValueError(
            f"Expected {' and '.join(folders)} in the recipe's data, got none. Write them with: spatialweave "
            "spatial_diff encode, and spatialweave spatial_diff geometry"
        )
    needs = ("latent", "reference", *(("tokens",) if settings.text else ("context", "pooled")))
    edits = FolderDataset(data["folder"], keys=needs, needs=needs)
    if not settings.tokens:
        return edits
    wanted = {"none": (), "latent": ("depth_latent",), "pixels": ("depth_image",)}[loss.depth]
    return GuidedEdits(
        edits, FolderDataset(data["geometry"], keys=("geometry", *wanted), needs=("geometry", *wanted))
    )


def load_frozen(settings: StageSettings, loss: StageLoss) -> FrozenEditor:
    network = load_editor(settings.base, dtype=getattr(torch, settings.precision))
    if settings.shard:
        mesh = make_mesh()
        for unit in (*network.double_blocks, *network.single_blocks, network):
            shard_unit(unit, mesh)
    text = load_text(settings.text, network.config.context_in_dim) if settings.text else None
    codec = load_codec() if loss.depth == "pixels" else None
    if codec is not None and network.config.in_channels != codec.config.latent_channels:
        raise ValueError(
            "Expected the tiny editor for depth pixels in the recipe's loss, as its codec decodes them, "
            f"got an editor of {network.config.in_channels} channels. Choose latent, the paper's choice."
        )
    return FrozenEditor(network, text, codec)


def make_parts(recipe: Recipe, settings: StageSettings, loss: StageLoss, network: Flux) -> TrainedParts:
    connector = head = lora = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if settings.tokens and settings.weights:
            connector = load_connector(settings.weights, dtype=torch.float32)
            head = load_depth_head(settings.weights, dtype=torch.float32)
        elif settings.tokens:
            changes = check_settings(
                settings.connector, get_type_hints(ConnectorConfig), "recipe's model.connector"
            )
            connector = GeometryConnector(replace(find_preset(recipe.preset), **changes))
        if loss.depth != "none":
            head = head or LatentDepthHead(connector.config)
        else:
            head = None
        if settings.stage == "lora":
            generator = Generator().manual_seed(recipe.seed)
            lora = LowRankLayers(network, settings.rank, settings.alpha, generator)
            fill_lora(lora, settings.lora)
    return TrainedParts(connector, head, lora)


@torch.no_grad()
def fill_lora(lora: LowRankLayers, path: str) -> None:
    """Go on from a LoRA's file, if one is named."""
    if not path:
        return
    stored = read_editor_lora(path)
    own = {name.replace("-", "."): layer for name, layer in lora.layers.items()}
    if set(stored) != set(own) or any(len(stored[name][0]) != lora.rank for name in own):
        raise ValueError(
            f"Expected a LoRA of rank {lora.rank} for {len(own)} layers in {path}, got another. Set the "
            "recipe's rank to the file's."
        )
    for name, layer in own.items():
        down, up, scale = stored[name]
        layer.down.copy_(down)
        layer.up.copy_(up * scale / layer.scale)


def check_encoded_sample(
    sample: Mapping[str, Any], network: Flux, connector: GeometryConnector | None, settings: StageSettings
) -> None:
    """ValueError unless the dataset was encoded for this editor and connector."""
    config, latent = network.config, tuple(sample["latent"].shape)
    if latent != tuple(sample["reference"].shape) or latent[0] != config.in_channels:
        raise ValueError(
            f"Expected latent and reference of {config.in_channels} channels and one size, got {latent} and "
            f"{tuple(sample['reference'].shape)}. Encode the edits for this editor."
        )
    if not settings.text and sample["context"].shape[-1] != config.context_in_dim:
        raise ValueError(
            f"Expected contexts of width {config.context_in_dim}, got {sample['context'].shape[-1]}. "
            "Encode the edits for this editor."
        )
    if connector is None:
        return
    own, width = connector.config, sample["geometry"].shape[-1]
    if own.width != config.hidden_size:
        raise ValueError(
            f"Expected a connector of width {config.hidden_size}, as the editor's sequence, got "
            f"{own.width}. Set width in the recipe's model.connector."
        )
    if own.geometry_width != width:
        raise ValueError(
            f"Expected geometry tokens of width {own.geometry_width}, got {width}. Set geometry_width in the "
            "recipe's model.connector, or encode them with another network."
        )
    if "depth_latent" in sample:
        grid = tuple(side * own.depth_patch for side in own.grid)
        if (own.depth_channels, *grid) != tuple(sample["depth_latent"].shape):
            raise ValueError(
                f"Expected depth latents {(own.depth_channels, *grid)}, as the connector's grid gives, got "
                f"{tuple(sample['depth_latent'].shape)}. Set grid, depth_channels and depth_patch."
            )


def report_run(
    recipe: Recipe, settings: StageSettings, dataset: Any, network: Flux, parts: TrainedParts
) -> None:
    """Log what the run will take."""
    connector = parts.connector.config if parts.connector is not None else None
    queries, geometry = (connector.queries, len(dataset[0]["geometry"])) if connector else (0, 0)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    estimate.log_estimate(
        estimate.estimate(
            network, network.config, parts, batch=recipe.batch_size // recipe.accumulate,
            tokens=estimate.count_tokens(network.config, dataset[0], queries),
            checkpointing=settings.checkpointing, processes=processes,
            shards=processes if settings.shard else 1, device=find_device(), connector=connector,
            geometry_tokens=geometry,
        )
    )  # fmt: skip


def stage_loss(
    model: TrainedParts,
    batch: Batch,
    generator: Generator,
    *,
    editor: FrozenEditor,
    settings: StageLoss,
    run: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The error of the velocity and, with depth supervision, of the depth that the head reads."""
    network = editor.network
    x, t, expected = draw_noisy(batch, NoiseLevels(settings.mu, settings.sigma), generator)
    text = encode_texts(editor, batch, generator, settings)
    dtype = network.img_in.weight.dtype
    options = {"attend": choose_attention(x.device), "run": run}
    if model.connector is not None:
        options["extra"] = make_extra(model.connector, batch, network)
    if network.config.guidance_embed:
        options["guidance"] = torch.full_like(t, settings.guidance)
    out = network(
        x.to(dtype), t, text["context"].to(dtype), [batch["reference"].to(dtype)],
        pooled=text["pooled"].to(dtype) if "pooled" in text else None, **options,
    )  # fmt: skip
    terms = {"velocity": flow_error(out.velocity, expected, weigh_changes(batch, settings.changed))}
    if model.head is not None:
        terms["depth"] = settings.weight * depth_error(model.head(out.rows.float()), batch, editor, settings)
    loss, logs = sum_terms(terms)
    return loss, logs | {"plain": flow_error(out.velocity.detach(), expected)}


def make_extra(connector: GeometryConnector, batch: Batch, network: Flux) -> ExtraTokens:
    """The connector's tokens with ids over the target's grid."""
    config = connector.config
    target = sequence_ids([tuple(batch["latent"].shape[-2:])], network.config.patch_size)
    ids = spread_ids(target, config.grid, config.first_axis)
    return ExtraTokens(connector(batch["geometry"].float()), ids)


def encode_texts(
    editor: FrozenEditor, batch: Batch, generator: Generator, settings: StageLoss
) -> dict[str, Tensor]:
    """The instructions as the editor reads them, some of them the empty one."""
    if editor.text_encoder is None:
        return {"context": batch["context"], "pooled": batch["pooled"]}
    dropped = torch.rand(len(batch["tokens"]), generator=generator) < settings.caption_dropout
    words = put_empty(batch["tokens"], tokenize_instructions([""])[0], dropped)
    return {"context": editor.text_encoder(words)}


def depth_error(latent: Tensor, batch: Batch, editor: FrozenEditor, settings: StageLoss) -> Tensor:
    """The squared error of the head's depth, in the latent or, decoded, in pixels."""
    if settings.depth == "latent":
        return F.mse_loss(latent, batch["depth_latent"].float())
    image = editor.codec.decode(latent).float().mean(dim=1, keepdim=True)
    return F.mse_loss(image, batch["depth_image"].float())


def export_stage(
    folder: Path, state: Mapping[str, Tensor], *, settings: StageSettings, config: ConnectorConfig | None,
    preset: str,
) -> None:  # fmt: skip
    """Write PRESET_connector.safetensors with its head, and PRESET_lora.safetensors."""
    parts = {
        name: {
            key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")
        }
        for name in ("connector", "head", "lora")
    }
    int8 = settings.ship == "int8"
    dtype = torch.float16 if int8 else getattr(torch, settings.ship)
    if config is not None:
        connector, head = GeometryConnector(config, device="meta"), None
        connector.load_state_dict(parts["connector"], assign=True)
        if parts["head"]:
            head = LatentDepthHead(config, device="meta")
            head.load_state_dict(parts["head"], assign=True)
        path = folder / f"{preset}_connector.safetensors"
        save_connector(path, connector, head, dtype=dtype, int8=int8)
    if parts["lora"]:
        facts = {"rank": settings.rank, "alpha": settings.alpha, "dtype": dtype}
        save_lora(folder / f"{preset}_lora.safetensors", parts["lora"], **facts)
