"""Base models from files: the shipped tiny one, or SD2.1, SDXL and PixArt from a diffusers folder.

Nothing is downloaded: a folder must be local.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.text_files import read_json_object, show_path
from ..core.weights.files import check_finite, fill_module, read_tensors
from ..tiny.text import TinyTextEncoder, explain_prompt, read_layout
from . import tiny
from .config import Family, VaeConfig
from .network import Backbone, find_component

SD1_PROMPT = 768  # width of SD1.5's context; SD2.1's is 1024
SDXL_SCALE = 0.13025  # latent scaling factor of SDXL's autoencoder, which PixArt-Sigma shares
PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Autoencoder:
    """A KL autoencoder of diffusers, with shift and scale to latents of mean 0 and standard deviation 1."""

    module: nn.Module
    scale: float
    shift: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, c, h, w) to (b, c, H, W) in float32, for any compute dtype of the autoencoder."""
        latents = latents / self.scale
        latents = latents + self.shift if self.shift else latents
        return self.module.decode(latents.to(self.dtype)).sample.float()


class PromptEncoder:
    """Prompts to the tensors that a family's network takes.

    The text encoders are the base's own, in a diffusers pipeline, or the tiny one.
    """

    def __init__(self, text: Any, family: Family):
        self.text, self.family, self.is_tiny = text, family, isinstance(text, TinyTextEncoder)

    def to(self, device: str | torch.device) -> PromptEncoder:
        self.text.to(device)
        return self

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """A row per prompt, by the family's CONDITIONS.

        context (b, n, d); for SDXL also pooled (b, d), for PixArt context_mask (b, n).
        """
        if self.is_tiny:
            return {"context": self.text.encode(prompts)}
        settings = {
            "device": self.text.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        if self.family == "pixart":
            context, mask, *_ = self.text.encode_prompt(prompts, **settings)
            return {"context": context, "context_mask": mask}
        context, _, *pooled = self.text.encode_prompt(prompts, **settings)
        return {"context": context, **({"pooled": pooled[0]} if self.family == "sdxl" else {})}

    def explain(self, prompts: list[str]) -> list[str]:
        """A sentence for each prompt with tokens outside the encoder's vocabulary."""
        return [note for note in map(explain_prompt, prompts) if note] if self.is_tiny else []


@dataclass(frozen=True)
class LatentDiffusion:
    """A whole base model: network, image autoencoder, text encoders."""

    backbone: Backbone
    autoencoder: Autoencoder
    prompts: PromptEncoder


def import_diffusers():
    """The diffusers module; an error explains how to install it."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            'Expected diffusers, which base models outside ComfyUI need, got none installed. Run: pip '
            'install "spatialweave[train]"'
        ) from error
    return diffusers


def load_tiny(
    path: str | os.PathLike = tiny.BASE_FILE, dtype: torch.dtype = torch.float32
) -> LatentDiffusion:
    """The tiny base. Its text encoder, which runs once per prompt, stays in float32."""
    diffusers, base = import_diffusers(), tiny.load_base(path)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**tiny.unet_for_diffusers())
        image = diffusers.AutoencoderKL(**tiny.VAE.for_diffusers(3))
        text = TinyTextEncoder(tiny.TEXT_WIDTH, tiny.TEXT_LAYERS)
    unet = load_module(unet, base.unet, "the tiny base's UNet", dtype)
    image = load_module(image, base.vae, "the tiny base's autoencoder", dtype)
    text = load_module(text, base.text, "the tiny base's text encoder")
    scheduler = diffusers.DDPMScheduler(
        **tiny.NOISE, prediction_type=tiny.PREDICTION, clip_sample=False, timestep_spacing="trailing"
    )
    backbone = Backbone(unet, tiny.FAMILY, scheduler)
    return LatentDiffusion(backbone, Autoencoder(image, base.vae_scale), PromptEncoder(text, tiny.FAMILY))


def load_folder(folder: str | Path, family: Family, dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """A pipeline in diffusers' layout, its image autoencoder in float32, as SDXL's requires.

    ValueError if something is missing.
    """
    folder = Path(folder)
    backbone = load_backbone(folder, family, dtype)
    prompts, vae = load_parts(folder, dtype)
    return LatentDiffusion(
        backbone, Autoencoder(vae, vae.config.scaling_factor, vae.config.shift_factor or 0.0), prompts
    )


def load_module(
    module: nn.Module, state: Mapping[str, Tensor], what: str, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The module with these weights, in inference mode, with `requires_grad` as `from_pretrained` leaves it.

    For few tokens torch multiplies a batch by weights that require gradients in one product (mm), by others
    row by row (bmm), even under no_grad, and on some processors the two round differently. Weights loaded by
    diffusers require gradients; without that our image would not equal the base's bit for bit.
    """
    # torch's own `to`, as diffusers' warns about the precision; filling keeps a module's dtype
    module = nn.Module.to(module, dtype)
    return fill_module(module, state, what=what).train(False)


def make_autoencoder(config: VaeConfig, device: str = "cpu") -> nn.Module:
    """diffusers' AutoencoderKL with eight input and output channels."""
    with torch.device(device):
        return import_diffusers().AutoencoderKL(**config.for_diffusers(), scaling_factor=config.base_scale)


def load_backbone(folder: str | Path, family: Family, dtype: torch.dtype = torch.float32) -> Backbone:
    """A pipeline's network, in inference mode, and its scheduler; ValueError for an unsuitable folder."""
    diffusers = import_diffusers()
    folder = Path(folder)
    found = find_family(folder)
    if found != family:
        raise ValueError(
            f"Expected a base of the family {family} in {folder}, as the preset says, got {found}. Change "
            "one of them."
        )
    kind = diffusers.PixArtTransformer2DModel if family == "pixart" else diffusers.UNet2DConditionModel
    component = find_component(family)
    try:
        scheduler = diffusers.DDPMScheduler.from_config(
            read_component_config(folder / "scheduler" / "scheduler_config.json")
        )
        network = kind.from_pretrained(
            folder,
            subfolder=component,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            variant=find_variant(folder / component),
        )
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"Expected a base that diffusers loads in {folder}, got an error: {error} Fetch the folder "
            "again, with its .safetensors files."
        ) from error
    check_finite(network.state_dict(), f"the base in {folder}")
    check_prediction(folder, scheduler.config.prediction_type)
    return Backbone(network.train(False), family, scheduler, find_kind(folder, family))


def check_prediction(folder: Path, prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"Expected a base that predicts {' or '.join(PREDICTIONS)} in {folder}, got {prediction!r} in "
            "its scheduler's config. Choose another base."
        )


def load_parts(base: Path, dtype: torch.dtype) -> tuple[PromptEncoder, nn.Module]:
    """The text encoders, and the image autoencoder in float32, of a base's folder."""
    family = find_family(base)
    if (base / tiny.TEXT_FILE).is_file():  # a folder written by `training.base`
        state = read_tensors(base / tiny.TEXT_FILE)
        text = fill_module(
            TinyTextEncoder(*read_layout(state), device="meta"), state, what=str(base / tiny.TEXT_FILE)
        )
        return PromptEncoder(text.train(False), family), load_image_vae(base)
    text, image = load_text_pipeline(base, dtype), load_image_vae(base)
    for name, module in text.components.items():
        if isinstance(module, nn.Module):
            check_finite(module.state_dict(), f"the {name} in {base}")
    return PromptEncoder(text, family), image


def load_text_pipeline(base: Path, dtype: torch.dtype) -> Any:
    """A diffusers pipeline of the text encoders and tokenizers alone."""
    index = read_component_config(base / "model_index.json")
    absent: dict[str, Any] = {find_component(find_family(base)): None, "vae": None}
    if "safety_checker" in index:
        absent |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with explain_parts(base):
        return import_diffusers().DiffusionPipeline.from_pretrained(
            base,
            **absent,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=dtype,
            variant=find_variant(base / "text_encoder"),
        )


def load_image_vae(base: Path) -> nn.Module:
    with explain_parts(base):
        image = import_diffusers().AutoencoderKL.from_pretrained(
            base,
            subfolder="vae",
            local_files_only=True,
            use_safetensors=True,
            variant=find_variant(base / "vae"),
        )
    check_finite(image.state_dict(), f"the vae in {base}")
    return image.train(False)


@contextmanager
def explain_parts(base: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, TypeError, ImportError) as error:
        raise ValueError(
            f"Expected text encoders and a VAE that diffusers loads in {base}, got an error: {error} Fetch "
            "the folder again, with its .safetensors files."
        ) from error


def find_family(folder: Path) -> Family:
    """The family of the base in a diffusers folder; ValueError for any other folder."""
    networks = [name for name in ("unet", "transformer") if (folder / name / "config.json").is_file()]
    if not networks:
        raise ValueError(
            f"Expected a base in diffusers' layout in {folder}, got neither unet/config.json nor "
            "transformer/config.json. Name the folder of a downloaded pipeline of SD2.1, SDXL or PixArt."
        )
    config = read_component_config(folder / networks[0] / "config.json")
    kind, added = config.get("_class_name"), config.get("addition_embed_type")
    families = {
        ("PixArtTransformer2DModel", None): "pixart",
        ("UNet2DConditionModel", None): "sd21",
        ("UNet2DConditionModel", "text_time"): "sdxl",
    }
    if not all(isinstance(each, str | None) for each in (kind, added)) or (kind, added) not in families:
        also = f" with {added}" if added else ""
        raise ValueError(
            f"Expected the base of SD2.1, SDXL or PixArt in {folder}, got {kind}{also}. Name such a folder."
        )
    return families[kind, added]


def find_kind(folder: Path, family: Family) -> str:
    """SD1.5 by its context width, PixArt-Sigma by SDXL's autoencoder; "" for the family's default."""
    if family == "sd21":
        width = read_component_config(folder / "unet" / "config.json").get("cross_attention_dim")
        return "sd15" if width == SD1_PROMPT else ""
    vae = folder / "vae" / "config.json"
    if family == "pixart" and vae.is_file():
        return "pixart_sigma" if read_component_config(vae).get("scaling_factor") == SDXL_SCALE else ""
    return ""


def find_variant(folder: Path) -> str | None:
    """ "fp16" if a folder has only half-precision files."""
    names = [path.name for path in folder.glob("*.safetensors*")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def read_component_config(path: Path) -> dict[str, Any]:
    """A JSON file with one object in a base's folder; ValueError describes the fault."""
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected a JSON object in {show_path(path)}, got a missing or damaged file ({error}). Fetch "
            "the folder of the base again."
        ) from error
