"""Training a small base model: the image autoencoder, then UNet and text encoder on precomputed latents.

With SD2.1, SDXL or PixArt as the base none of this is needed. A run writes a folder in diffusers' layout,
from which the intrinsic VAE is initialized and on which the LoRA trains, as with a published base.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from ...core.losses import sum_terms
from ...core.training.alignment import Aligner, PositionReader, collect_activations
from ...core.training.captions import draw_captions
from ...core.training.data import pick
from ...core.training.loop import Batch, Task
from ...core.training.recipe import Recipe
from ...core.training.settings import check_settings, read_settings
from ...core.weights.files import check_finite, fill_module, write_tensors
from ...tiny.codec_training import edge_distance, psnr
from .. import tiny
from ..attention import Coupling, KVCache
from ..backbones import import_diffusers
from ..config import Noise
from ..network import Backbone, couple, find_attention_layers
from ..rows import BOTH, Rows
from ..vae import latent_scale


@dataclass(frozen=True)
class ImageVaeLoss:
    """The `loss` settings of the autoencoder's recipe."""

    crop: int = 0  # side of a random training crop in pixels; 0 uses the whole image
    edges: float = 1.0  # weight of L1 on differences of neighboring pixels
    divergence: float = 0.003  # weight of the KL term per latent element
    align: float = 0.02  # weight of the cross-entropy of cell classes predicted from the latent

    def __post_init__(self) -> None:
        if self.crop < 0 or min(self.edges, self.divergence, self.align) < 0:
            raise ValueError(
                f"Expected numbers of at least 0 in the recipe's loss, got {self}. Correct the recipe."
            )


class TrainedVae(nn.Module):
    """The trained modules: the autoencoder, and the classifier on its latents."""

    def __init__(self, vae: nn.Module, aligner: Aligner):
        super().__init__()
        self.vae, self.aligner = vae, aligner


def build_image_vae(recipe: Recipe, *, dataset: Any, classes: tuple[int, ...], cell: int) -> Task:
    """The Task of an autoencoder's recipe.

    `dataset` returns image (3, h, w) in [-1, 1] and cells (k, h / cell, w / cell), class indices below
    `classes`. The recipe's model may name `weights`, the folder of an autoencoder of the same layout to
    continue from.
    """
    check_settings(recipe.model, {"weights": str}, "recipe's model")
    settings, config = read_settings(ImageVaeLoss, recipe.loss, "recipe's loss"), tiny.VAE
    if settings.crop % config.stride:
        raise ValueError(
            f"Expected crop of the recipe's loss as a multiple of {config.stride}, the pixels per latent "
            f"pixel, got {settings.crop}. Choose another crop."
        )
    sides = tuple(dataset[0]["image"].shape[1:])
    if settings.crop > min(sides):
        raise ValueError(
            f"Expected crop of the recipe's loss within the images' {sides[1]} x {sides[0]} pixels, got "
            f"{settings.crop}. Choose a smaller crop."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vae = import_diffusers().AutoencoderKL(**config.for_diffusers(3))
        if recipe.model.get("weights"):
            vae = fill_module(
                vae, FrozenVae(Path(recipe.model["weights"])).vae.state_dict(), what=recipe.model["weights"]
            )
        model = TrainedVae(vae, Aligner(config.latent_channels, classes, config.stride // cell))
    loss = partial(image_vae_loss, settings=settings, stride=config.stride)
    return Task(model, loss, dataset, export=partial(export_image_vae, dataset=dataset))


def image_vae_loss(
    model: TrainedVae, batch: Batch, generator: Generator, *, settings: ImageVaeLoss, stride: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """batch: image (b, 3, h, w) in [-1, 1], cells. One sample from the posterior."""
    image, cells = cut(batch["image"], batch["cells"], settings.crop, stride, generator)
    posterior = model.vae.encode(image).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    latent = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(mean.device)
    out = model.vae.decode(latent).sample.float()
    terms = {
        "pixel": (out - image).abs().mean(),
        "edges": settings.edges * edge_distance(out, image),
        "divergence": (
            settings.divergence * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        ),
        "align": settings.align * model.aligner(rearrange(latent, "b c h w -> b (h w) c"), cells),
    }
    loss, logs = sum_terms(terms)
    return loss, {**logs, "psnr": psnr(out, image)}


def cut(image: Tensor, cells: Tensor, crop: int, stride: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A square of `crop` pixels from each image, aligned to the latent grid, and its cells."""
    if not crop:
        return image, cells
    finer = image.shape[3] // cells.shape[3]  # pixels per cell along a side
    rows, columns = (
        torch.randint((size - crop) // stride + 1, (len(image),), generator=generator) * stride
        for size in image.shape[2:]
    )
    cut_out = []
    for tensor, scale in ((image, 1), (cells, finer)):
        side = crop // scale
        corners = zip(tensor, (rows // scale).tolist(), (columns // scale).tolist(), strict=True)
        cut_out.append(
            torch.stack([each[:, top : top + side, left : left + side] for each, top, left in corners])
        )
    return cut_out[0], cut_out[1]


def export_image_vae(folder: Path, state: Mapping[str, Tensor], *, dataset: Any, measure: int = 64) -> None:
    """Write a folder in diffusers' layout, with the latent scaling factor measured on `measure` images."""
    vae = import_diffusers().AutoencoderKL(**tiny.VAE.for_diffusers(3))
    vae.load_state_dict(
        {name.removeprefix("vae."): value.float() for name, value in state.items() if name.startswith("vae.")}
    )
    with torch.no_grad():
        images = [sample["image"] for sample in pick(dataset, measure)]
        vae.register_to_config(
            scaling_factor=latent_scale(vae.encode(torch.stack(images)).latent_dist.mode())
        )
    vae.save_pretrained(folder / "vae")


class FrozenVae(nn.Module):
    """The autoencoder of a folder, encoding to unit standard deviation; ValueError for a bad folder."""

    def __init__(self, folder: Path):
        super().__init__()
        try:
            self.vae = import_diffusers().AutoencoderKL.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Expected an autoencoder in diffusers' layout in {folder}, got none ({error}). Train the "
                "tiny one first."
            ) from error
        check_finite(self.vae.state_dict(), f"the autoencoder in {folder}")
        self.requires_grad_(False).train(False)

    def encode(self, image: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] to latents (b, c, h, w)."""
        return self.vae.encode(image).latent_dist.mode() * self.vae.config.scaling_factor


@dataclass(frozen=True)
class BaseLoss:
    """The `loss` settings of the UNet's recipe."""

    caption_dropout: float = 0.1  # probability of an empty prompt, for CFG
    align: float = 0.5  # weight of the cross-entropy of cell classes predicted from the UNet's middle block
    position: float = 0.0  # weight of the squared error of positions predicted from self-attention keys
    noise: Noise = "independent"  # of pairs: separate noise, or "shared" by an image and its maps

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1 or min(self.align, self.position) < 0:
            raise ValueError(
                "Expected caption_dropout from 0 to 1 and align and position of at least 0 in the recipe's "
                f"loss, got {self}. Correct the recipe."
            )


class TrainedBase(nn.Module):
    """The trained modules: UNet, text encoder, and auxiliary heads on the middle block and on the keys."""

    def __init__(
        self, unet: nn.Module, text_encoder: nn.Module, aligner: Aligner | None, with_positions: bool
    ):
        super().__init__()
        self.unet, self.text_encoder, self.aligner = unet, text_encoder, aligner
        self.reader = PositionReader([keys.out_features for keys in self.keys()]) if with_positions else None

    def keys(self) -> list[nn.Module]:
        return [self.unet.get_submodule(f"{layer.name}.to_k") for layer in find_attention_layers(self.unet)]


def build_base(
    recipe: Recipe,
    *,
    text_encoder: nn.Module,
    empty_tokens: Tensor,
    dataset: Any,
    classes: tuple[int, ...],
    vae_folder: Path,
) -> Task:
    """The Task of a UNet's recipe.

    `dataset` returns latent (c, h, w) of unit standard deviation, tokens (k, n) with a row per caption,
    cells, and maps (a flag) if it contains images of maps; or, for `pair_loss`, latent, intrinsic_latent,
    tokens (n,) and maps_tokens (n,). `model.weights` is the folder of a base to continue from. The
    autoencoder of `vae_folder` is copied into the output folder.
    """
    diffusers = import_diffusers()
    check_settings(recipe.model, {"weights": str}, "recipe's model")
    settings = read_settings(BaseLoss, recipe.loss, "recipe's loss")
    sample = dataset[0]
    with_pairs = "intrinsic_latent" in sample
    if with_pairs and settings.align:
        raise ValueError(
            "Expected align 0 in the recipe's loss for pairs, which have no class labels of cells, got "
            f"{settings.align:g}. Set align to 0."
        )
    if settings.noise != "independent" and not with_pairs:
        raise ValueError(
            "Expected no noise in the recipe's loss for data without pairs, which have noise of one kind "
            f"only, got {settings.noise!r}. Leave it out."
        )
    if sample["latent"].shape[0] != tiny.VAE.latent_channels:
        raise ValueError(
            f"Expected latents of {tiny.VAE.latent_channels} channels, as the tiny base has, got "
            f"{tuple(sample['latent'].shape)}. Encode the images with its autoencoder."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = diffusers.UNet2DConditionModel(**tiny.unet_for_diffusers())
        smallest = sample["latent"].shape[-1] // 2 ** (len(tiny.WIDTHS) - 1)
        aligner = (
            Aligner(tiny.WIDTHS[-1], classes, sample["cells"].shape[-1] // smallest)
            if settings.align
            else None
        )
        model = TrainedBase(network, text_encoder, aligner, settings.position > 0)
    if recipe.model.get("weights"):
        start = tiny.read_base_folder(Path(recipe.model["weights"]))
        for module, state in ((network, start.unet), (text_encoder, start.text)):
            fill_module(
                module,
                {name: value.float() for name, value in state.items()},
                what=f"the base {recipe.model['weights']}",
            )
    scheduler = diffusers.DDPMScheduler(**tiny.NOISE, prediction_type=tiny.PREDICTION, clip_sample=False)
    base = Backbone(network, tiny.FAMILY, scheduler)
    if with_pairs:
        loss = partial(
            pair_loss, base=base, coupling=couple(network)[0], empty=empty_tokens, settings=settings
        )
    else:
        loss = partial(base_loss, base=base, empty=empty_tokens, settings=settings)
    return Task(model, loss, dataset, export=partial(export_base, scheduler=scheduler, vae_folder=vae_folder))


def base_loss(
    model: TrainedBase,
    batch: Batch,
    generator: Generator,
    *,
    base: Backbone,
    empty: Tensor,
    settings: BaseLoss,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the model output at a uniform random timestep, on one caption per image."""
    x0 = batch["latent"].float()
    tokens = draw_captions({**batch, "empty_tokens": empty}, generator, settings.caption_dropout)
    if "maps" in batch:  # images of maps keep their prompt: the empty prompt stands for images alone
        tokens = torch.where(batch["maps"][:, None], batch["tokens"][:, 0], tokens)
    t = torch.randint(base.steps, (len(x0),), generator=generator).to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    with collect_activations(model.unet.mid_block) as features, ExitStack() as stack:
        keys = collect_keys(model, stack)
        output = model.unet(
            base.add_noise(x0, noise, t), t, model.text_encoder(tokens), return_dict=False
        )[0].float()  # fmt: skip
    terms = {"image": F.mse_loss(output, base.target(x0, noise, t))}
    if model.aligner:
        cells = rearrange(features[0], "b c h w -> b (h w) c")
        terms["align"] = settings.align * model.aligner(cells, batch["cells"])
    if model.reader:
        terms["position"] = settings.position * model.reader([calls[0] for calls in keys], x0.shape[2:])
    return sum_terms(terms)


def collect_keys(model: TrainedBase, stack: ExitStack) -> list[list[Tensor]]:
    """The self-attention keys (b, n, d) of the network's calls while `stack` is open, a list per layer."""
    if model.reader is None:
        return []
    return [stack.enter_context(collect_activations(layer)) for layer in model.keys()]


def pair_loss(
    model: TrainedBase, batch: Batch, generator: Generator, *, base: Backbone, coupling: Coupling,
    empty: Tensor, settings: BaseLoss
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The same for images and for the maps of their scenes, at one timestep for both.

    In each self-attention the maps also attend to the image's keys and values; images do not attend to maps.
    With shared noise a position has similar features in both streams, so that the match is learned; but the
    difference of the latents is then noise-free, information that sampling does not have. So train first with
    shared, then with independent noise.
    """
    clean = {"image": batch["latent"].float(), "intrinsic": batch["intrinsic_latent"].float()}
    x0 = clean["image"]
    tokens = {
        "image": draw_captions(
            {"tokens": batch["tokens"], "empty_tokens": empty}, generator, settings.caption_dropout
        ),
        "intrinsic": draw_captions(
            {"tokens": batch["maps_tokens"], "empty_tokens": empty}, generator, settings.caption_dropout
        ),
    }
    t = torch.randint(base.steps, (len(x0),), generator=generator).to(x0.device)
    noises = {stream: torch.randn(x.shape, generator=generator).to(x.device) for stream, x in clean.items()}
    if settings.noise == "shared":
        noises["intrinsic"] = noises["image"]
    terms, cache = {}, KVCache()
    with ExitStack() as stack:
        keys = collect_keys(model, stack)
        for stream in BOTH:
            noised = base.add_noise(clean[stream], noises[stream], t)
            context = model.text_encoder(tokens[stream])
            with coupling.call(Rows(("prompt",), len(x0), (stream,)), cache=cache):
                output = model.unet(noised, t, context, return_dict=False)[0].float()
            terms[stream] = F.mse_loss(output, base.target(clean[stream], noises[stream], t))
    if model.reader:
        terms["position"] = settings.position * model.reader([calls[0] for calls in keys], x0.shape[2:])
    return sum_terms(terms)


def export_base(folder: Path, state: Mapping[str, Tensor], *, scheduler: Any, vae_folder: Path) -> None:
    """Write the base in diffusers' layout, with our text encoder's file, and as one file to ship."""
    diffusers = import_diffusers()
    network = diffusers.UNet2DConditionModel(**tiny.unet_for_diffusers())
    network.load_state_dict(
        {
            name.removeprefix("unet."): value.float()
            for name, value in state.items()
            if name.startswith("unet.")
        }
    )
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    diffusers.AutoencoderKL.from_pretrained(
        vae_folder, local_files_only=True, use_safetensors=True
    ).save_pretrained(folder / "vae")
    text = {
        name.removeprefix("text_encoder."): value
        for name, value in state.items()
        if name.startswith("text_encoder.")
    }
    write_tensors(folder / tiny.TEXT_FILE, text, {}, kind="tiny text encoder")
    tiny.save_base(folder / tiny.BASE_FILE.name, tiny.read_base_folder(folder))
