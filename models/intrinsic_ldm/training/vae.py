"""Training the intrinsic VAE: a base autoencoder, widened to eight channels, on folders of maps.

Each map of a sample is dropped from the input with probability `drop` and stays in the target, so that the
latent encodes all of them. Maps that the dataset lacks are excluded from both. At export the standard
deviation of the latents is measured, and its inverse is stored in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from torch import Generator, Tensor, nn

from ...core.losses import sum_terms
from ...core.training.loop import Batch, Task
from ...core.training.recipe import Recipe
from ...core.training.settings import Size, check_settings, read_settings
from ...core.weights.files import fill_module, read_tensors
from ..backbones import make_autoencoder, read_component_config
from ..config import GROUPS, VaeConfig
from ..data.dataset import IntrinsicSamples
from ..vae import DROP, drop_maps, latent_scale, vae_losses, widen_state
from ..weights import load_intrinsic_vae, save_intrinsic_vae, to_core_names, to_diffusers_names
from .perceptual import load_perceptual

Ship = Literal["float32", "float16", "bfloat16"]
VAE_FILE = "intrinsic_vae.safetensors"  # in the run's output folder
IN_CHECKPOINT = "first_stage_model."  # key prefix of the autoencoder in full latent diffusion checkpoints
BALANCES = ("line_balance", "segment_balance")  # settings of VaeLoss passed to `vae_losses`


@dataclass(frozen=True)
class VaeSettings:
    """The `model` settings of a recipe. Without `base` and `weights` the weights are random."""

    # the base autoencoder: a folder in diffusers' layout (also of a pipeline), or a file of either naming
    base: str = ""
    weights: str = ""  # or an intrinsic VAE to continue from
    # changes to VaeConfig; not with a folder or an intrinsic VAE, which have their own config
    config: Mapping[str, Any] = field(default_factory=dict)
    measure: int = 64  # number of samples for the latent scale, evenly spaced over the dataset
    ship: Ship = "float32"

    def __post_init__(self) -> None:
        if self.base and self.weights:
            raise ValueError(
                "Expected base or weights in the recipe's model, got both. Leave one of them out."
            )
        if self.measure < 1:
            raise ValueError(
                "Expected measure of the recipe's model, the samples for the latent scale, to be at least 1, "
                f"got {self.measure}. Increase it."
            )
        check_settings(self.config, get_type_hints(VaeConfig), "recipe's model.config")


@dataclass(frozen=True)
class VaeLoss:
    """The `loss` settings of a recipe: map dropout probability, and weights of the terms of `vae_losses`."""

    drop: float = DROP
    depth: float = 1.0
    normals: float = 1.0
    segmentation: float = 1.0
    line: float = 1.0
    line_balance: float = 1.0  # weight of a line pixel relative to a paper pixel
    segment_balance: float = 1.0  # weight of a segment pixel relative to a background pixel
    normals_angle: float = 1.0
    divergence: float = 1.0  # weight of the KL term, on top of its factor 1e-6
    perceptual: float = 1.0
    perceptual_weights: str = ""  # torchvision's VGG16 as safetensors; without it no perceptual term

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(
                f"Expected drop of the recipe's loss from 0 to below 1, got {self.drop}. Choose another "
                "probability."
            )
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(
                    f"Expected {f.name} of the recipe's loss to be at least 0, got {value}. Increase it."
                )
        for name in BALANCES:
            if not getattr(self, name):
                raise ValueError(
                    f"Expected {name} of the recipe's loss above 0, got 0, by which such pixels have no "
                    "weight. Set it to 1 for equal weights."
                )


def build(recipe: Recipe) -> Task:
    """The Task of a recipe.

    `data.folder` is a dataset folder with maps, `data.size` (height, width) the size they are resized to.
    """
    settings = read_settings(VaeSettings, recipe.model, "recipe's model")
    loss = read_settings(VaeLoss, recipe.loss, "recipe's loss")
    check_settings(recipe.data, {"folder": str, "size": Size | None}, "recipe's data")
    if not recipe.data.get("folder"):
        raise ValueError(
            "Expected a folder in the recipe's data, got none. Write one with: spatialweave intrinsics build "
            "(or world --normals)"
        )
    dataset = IntrinsicSamples(recipe.data["folder"], size=recipe.data.get("size"))
    config, state = load_initial_state(settings)
    check_size(dataset[0]["maps"], config)
    if state is not None:
        what = f"The autoencoder {settings.base or settings.weights}"
        model = fill_module(make_autoencoder(config, "meta"), state, what=what)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = make_autoencoder(config)
    perceptual = load_perceptual(loss.perceptual_weights) if loss.perceptual_weights else None
    return Task(
        model=model,
        loss=partial(vae_loss, settings=loss, perceptual=perceptual),
        dataset=dataset,
        companions=(perceptual,) if perceptual is not None else (),
        export=partial(export, config=config, dataset=dataset, settings=settings),
    )


def check_size(maps: Tensor, config: VaeConfig) -> None:
    height, width = maps.shape[-2:]
    # GroupNorm is undefined on a single latent pixel
    if height % config.stride or width % config.stride or height * width == config.stride**2:
        raise ValueError(
            f"Expected samples with sides that are multiples of {config.stride}, of more than one latent "
            f"pixel, got {width} x {height} pixels. Set the recipe's data.size."
        )


def load_initial_state(settings: VaeSettings) -> tuple[VaeConfig, dict[str, Tensor] | None]:
    """The layout, and the initial weights under diffusers' names; None for random weights."""
    if settings.weights:
        loaded = load_intrinsic_vae(settings.weights)
        check_unchanged(settings, loaded.config)
        return loaded.config, to_diffusers_names(loaded.state)
    if not settings.base:
        return read_config(settings), None
    path = Path(settings.base)
    if path.is_dir():
        config, path = read_vae_folder(path)
        check_unchanged(settings, config)
    else:
        config = read_config(settings)
    tensors = read_tensors(path)
    if any(name.startswith(IN_CHECKPOINT) for name in tensors):
        tensors = {
            name.removeprefix(IN_CHECKPOINT): value
            for name, value in tensors.items()
            if name.startswith(IN_CHECKPOINT)
        }
    if "encoder.conv_in.weight" not in tensors or "decoder.conv_out.weight" not in tensors:
        raise ValueError(
            f"Expected a KL autoencoder in {path}, got other tensors. Name the base model's own VAE, a file "
            "or a folder in diffusers' layout."
        )
    return config, to_diffusers_names(widen_state(to_core_names(tensors)))


def read_config(settings: VaeSettings) -> VaeConfig:
    """The layout of the autoencoder in the recipe."""
    try:
        return replace(VaeConfig(), **settings.config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Expected an autoencoder's config in the recipe's model, got: {error}") from error


def check_unchanged(settings: VaeSettings, config: VaeConfig) -> None:
    if settings.config:
        raise ValueError(
            f"Expected no config in the recipe's model, as {settings.base or settings.weights} has its own "
            f"({config}), got {settings.config}. Leave it out."
        )


def read_vae_folder(folder: Path) -> tuple[VaeConfig, Path]:
    """The layout and the weights file of an autoencoder's folder, or of its pipeline's."""
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    stated = read_component_config(folder / "config.json")
    try:
        widths = stated["block_out_channels"]
        config = VaeConfig(
            widths[0], tuple(width // widths[0] for width in widths), stated["layers_per_block"],
            stated["latent_channels"], stated.get("scaling_factor", VaeConfig.base_scale),
        )  # fmt: skip
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"Expected the config of a KL autoencoder in {folder / 'config.json'}, got one without {error}. "
            "Name the base model's VAE."
        ) from error
    if stated.get("norm_num_groups", GROUPS) != GROUPS:
        raise ValueError(
            f"Expected GroupNorm of {GROUPS} groups, as SD has, in the autoencoder in {folder}, got "
            f"{stated['norm_num_groups']}. Name the base model's VAE."
        )
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"), key=lambda path: len(path.name))
    if not files:
        raise ValueError(
            f"Expected diffusion_pytorch_model.safetensors in {folder}, got none. Fetch the folder again "
            "with its safetensors files."
        )
    return config, files[0]


def vae_loss(
    model: nn.Module,
    batch: Batch,
    generator: Generator,
    *,
    settings: VaeLoss,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """batch: maps (b, 8, h, w) in [-1, 1], present (b, 4). One sample from the posterior, as in the base."""
    maps = batch["maps"].float()
    posterior = model.encode(drop_maps(maps, generator, settings.drop)).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    drawn = torch.randn(mean.shape, generator=generator).to(mean.device)
    out = model.decode(mean + (0.5 * log_variance).exp() * drawn).sample.float()
    balances = {name: getattr(settings, name) for name in BALANCES}
    terms = vae_losses(out, maps, mean, log_variance, perceptual, present=batch["present"], **balances)
    return sum_terms({name: getattr(settings, name) * value for name, value in terms.items()})


def export(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    config: VaeConfig,
    dataset: IntrinsicSamples,
    settings: VaeSettings,
) -> None:
    """Write the averaged weights under ComfyUI's names, in the selected dtype, with the latent scale."""
    device = next(iter(state.values())).device
    model = fill_module(
        make_autoencoder(config, "meta"), state, what="the training state", device=device
    ).train(False)
    scale = measure_scale(model, dataset, settings.measure)
    tensors = {name: value.to(getattr(torch, settings.ship)) for name, value in to_core_names(state).items()}
    save_intrinsic_vae(folder / VAE_FILE, tensors, config, latent_scale=scale)


@torch.no_grad()
def measure_scale(model: nn.Module, dataset: IntrinsicSamples, count: int) -> float:
    """`latent_scale` of the posterior means of `count` samples, evenly spaced, without map dropout."""
    count, device = min(count, len(dataset)), next(model.parameters()).device
    latents = []
    for number in range(count):
        maps = dataset[number * len(dataset) // count]["maps"]
        # flattened, as sizes may differ
        latents.append(model.encode(maps[None].to(device)).latent_dist.mode().float().flatten())
    return latent_scale(torch.cat(latents))
