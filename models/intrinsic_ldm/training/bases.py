"""The base models that an intrinsic LoRA trains beside: read from a folder of diffusers, frozen, called with what each wants to know.

A family is the form of a base's inputs: "sd21" reads a prompt, "sdxl" also its pooled form and the picture's size, "pixart" the prompt's
mask and, where the model is the 1024 pixel one, the size. Nothing is ever fetched: a folder lies on this machine or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...core.text_files import read_json_object, show_path
from ...core.weights.files import check_finite

Family = Literal["sd21", "sdxl", "pixart"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Noise = Literal["independent", "shared"]  # of a picture and its maps in training
CONDITIONS: Mapping[Family, tuple[str, ...]] = {
    "sd21": ("context",),
    "sdxl": ("context", "pooled"),
    "pixart": ("context", "context_mask"),
}
PIXELS = 8  # of a side of the picture to one of the latent's
SD1_PROMPT = 768  # width of its prompts, where SD2.1's are 1024
SDXL_SCALE = 0.13025  # of the autoencoder that PixArt-Sigma shares
PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Base:
    """A frozen base: its network, and its noise as diffusers' DDPM scheduler knows it."""

    network: nn.Module
    family: Family
    scheduler: Any
    kind: str = ""  # what its LoRA is for, where that is narrower than the family: "sd15" and "pixart_sigma" have another's layers

    @property
    def name(self) -> str:
        """Of the base in a LoRA's file, as the node tells models apart."""
        return self.kind or self.family

    @property
    def part(self) -> str:
        """What diffusers calls the network in its pipeline, and LoRA files in front of their names."""
        return find_part(self.family)

    @property
    def steps(self) -> int:
        return self.scheduler.config.num_train_timesteps

    @property
    def channels(self) -> int:
        return self.network.config.in_channels

    @property
    def context_width(self) -> int:
        config = self.network.config
        return config.caption_channels if self.family == "pixart" else config.cross_attention_dim

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """sqrt(a) x0 + sqrt(1 - a) noise at the times t (b,)."""
        return self.scheduler.add_noise(x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the base predicts: the noise, or sqrt(a) noise - sqrt(1 - a) x0."""
        return noise if self.scheduler.config.prediction_type == "epsilon" else self.scheduler.get_velocity(x0, noise, t)

    def predict(self, x: Tensor, t: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
        """The network's word on rows x (r, c, h, w) at times t (r,), in float32; `prompt` holds the family's CONDITIONS, a row each."""
        dtype, height, width = self.network.dtype, PIXELS * x.shape[2], PIXELS * x.shape[3]
        more = {}
        if self.family == "sdxl":
            # the picture is whole: its first size, the corner it was cropped at, the size it has
            size = torch.tensor([[height, width, 0, 0, height, width]], device=x.device, dtype=dtype)
            more["added_cond_kwargs"] = {"text_embeds": prompt["pooled"].to(dtype), "time_ids": size.expand(len(x), -1)}
        if self.family == "pixart":
            more["encoder_attention_mask"] = prompt["context_mask"].to(dtype)
            more["added_cond_kwargs"] = pixart_size(self.network, height, width, x.to(dtype))
        out = self.network(x.to(dtype), timestep=t, encoder_hidden_states=prompt["context"].to(dtype), return_dict=False, **more)[0]
        return out[:, : x.shape[1]].float()  # PixArt's other half are variances


def pixart_size(network: nn.Module, height: int, width: int, like: Tensor) -> dict[str, Tensor | None]:
    if not network.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    rows = len(like)
    return {
        "resolution": like.new_tensor([[height, width]]).expand(rows, -1),
        "aspect_ratio": like.new_tensor([[height / width]]).expand(rows, -1),
    }


def import_diffusers():
    """The library, or how to get it."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError('Training on a base model needs diffusers, which is not installed: pip install "spatialweave[train]".') from error
    return diffusers


def load_base(folder: str | Path, family: Family, dtype: torch.dtype = torch.float32) -> Base:
    """A pipeline's network, frozen, and its scheduler; ValueError says what the folder is or lacks."""
    diffusers = import_diffusers()
    folder = Path(folder)
    found = find_family(folder)
    if found != family:
        raise ValueError(f"{folder} holds a base of the family {found}, but the recipe's preset is {family!r}; change one of them.")
    kind = diffusers.PixArtTransformer2DModel if family == "pixart" else diffusers.UNet2DConditionModel
    part = find_part(family)
    try:
        scheduler = diffusers.DDPMScheduler.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))
        network = kind.from_pretrained(
            folder, subfolder=part, torch_dtype=dtype, local_files_only=True, use_safetensors=True, variant=find_variant(folder / part)
        )  # fmt: skip
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"The base in {folder} cannot be loaded: {error} Fetch the folder again, with its .safetensors files.") from error
    check_finite(network.state_dict(), f"the base in {folder}")
    check_prediction(folder, scheduler.config.prediction_type)
    return Base(network.requires_grad_(False).train(False), family, scheduler, find_kind(folder, family))


def check_prediction(folder: Path, prediction: str) -> None:
    if prediction not in PREDICTIONS:
        wanted = " or ".join(PREDICTIONS)
        raise ValueError(f"The base in {folder} predicts {prediction!r}; this loss is for bases that predict {wanted}.")


def find_part(family: Family) -> str:
    return "transformer" if family == "pixart" else "unet"


def find_family(folder: Path) -> Family:
    """Which of the families the base in a diffusers folder belongs to; ValueError for others and for what is no such folder."""
    parts = [part for part in ("unet", "transformer") if (folder / part / "config.json").is_file()]
    if not parts:
        raise ValueError(
            f"{folder} is no base in diffusers' form: it has neither unet/config.json nor transformer/config.json; name the folder of a "
            "downloaded pipeline of SD2.1, SDXL or PixArt."
        )
    config = read_json(folder / parts[0] / "config.json")
    kind, added = config.get("_class_name"), config.get("addition_embed_type")
    families = {
        ("PixArtTransformer2DModel", None): "pixart",
        ("UNet2DConditionModel", None): "sd21",
        ("UNet2DConditionModel", "text_time"): "sdxl",
    }
    if not all(isinstance(each, str | None) for each in (kind, added)) or (kind, added) not in families:
        also = f" with {added}" if added else ""
        raise ValueError(f"{folder} holds a {kind}{also}, wanted the base of SD2.1, SDXL or PixArt; name such a folder.")
    return families[kind, added]


def find_kind(folder: Path, family: Family) -> str:
    """SD1.5 by the width of its prompts, PixArt-Sigma by SDXL's autoencoder; "" for the family's own."""
    if family == "sd21":
        return "sd15" if read_json(folder / "unet" / "config.json").get("cross_attention_dim") == SD1_PROMPT else ""
    vae = folder / "vae" / "config.json"
    if family == "pixart" and vae.is_file():
        return "pixart_sigma" if read_json(vae).get("scaling_factor") == SDXL_SCALE else ""
    return ""


def find_variant(folder: Path) -> str | None:
    """ "fp16" where a folder has nothing but half precision files."""
    names = [path.name for path in folder.glob("*.safetensors*")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def read_json(path: Path) -> dict[str, Any]:
    """A file of a base's folder that holds one object; ValueError says what is wrong with it."""
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{show_path(path)} is missing or damaged ({error}); fetch the folder of the base again.") from error
