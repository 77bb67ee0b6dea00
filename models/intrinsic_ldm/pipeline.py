"""Prompts to images with intrinsic maps: the tiny base, SD2.1, SDXL or PixArt through diffusers.

    pipeline = IntrinsicPipeline.from_preset("sd21", weights={"base": FOLDER, "vae": FILE, "lora": FILE})
    result = pipeline("a red chair by a window", seed=3)
    result.image                    # (b, h, w, 3) in [0, 1]
    result.decode_maps()            # depth, normals, segmentation and line art, see maps/codec.py

In ComfyUI, nodes do the same inside ComfyUI's sampling (nodes/host/intrinsic_ldm/run.py); equation, LoRA and
schedules are shared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.diffusion.guidance import guide
from ..core.geometry.normals import NormalStyle
from ..core.protocols import OnStep
from . import tiny
from .attention import KVCache
from .backbones import (
    Autoencoder,
    LatentDiffusion,
    import_diffusers,
    load_folder,
    load_module,
    load_tiny,
    make_autoencoder,
)
from .config import Preset, find_preset
from .layers import Layer, Reading, check_layers
from .lora import LowRank, open_lora, read_lora
from .maps.channels import FAR, NEAR
from .maps.codec import MapImages, channels_to_maps
from .network import PIXELS, Backbone, couple, projections
from .rows import BOTH, Rows, Stream
from .sampling import Latents, draw_noise, sample_streams
from .schedules import Drop, Gaussian, Schedule
from .weights import IntrinsicVae, load_intrinsic_vae, to_diffusers_names

PathLike = str | os.PathLike
TINY_FILES = {"base": tiny.BASE_FILE, "vae": tiny.VAE_FILE, "lora": tiny.LORA_FILE}


@dataclass(frozen=True)
class Result:
    """One batch. `maps` are laid out as by `stack_maps`, None if only the image was requested."""

    image: Tensor  # (b, h, w, 3) in [0, 1]
    maps: Tensor | None  # (b, 8, h, w) in [-1, 1]
    notes: tuple[str, ...]  # a sentence per prompt with words outside the text encoder's vocabulary
    seed: int
    seconds: float

    def decode_maps(
        self, *, near: float = NEAR, far: float = FAR, style: NormalStyle = "opengl"
    ) -> MapImages:
        """The View with depth and normals, the normal map, segmentation and line art.

        `near` and `far` scale the depth.
        """
        if self.maps is None:
            raise ValueError("Expected a result with maps, got one of maps=False. Sample again without it.")
        return channels_to_maps(self.maps, near=near, far=far, style=style, image=self.image)


@dataclass(frozen=True)
class Steering:
    """The fixed inputs of a run: schedule of w, conditioning of each prompt, and guidance scale."""

    schedule: Schedule
    reading: Reading
    # for "prompt" and, under CFG, for "empty": tensors by CONDITIONS, a row per image
    conditions: Mapping[str, Mapping[str, Tensor]]
    guidance: float

    def weights(self, layers: Sequence[Layer], t: float) -> dict[int, float]:
        return {layer.block: self.schedule.weight(layer.number(self.reading), t) for layer in layers}

    def guide(self, predictions: Tensor) -> Tensor:
        """CFG: (prompts, b, c, h, w) to (b, c, h, w)."""
        return (
            predictions[0] if len(predictions) == 1 else guide(predictions[0], predictions[1], self.guidance)
        )


class IntrinsicPipeline:
    """A base model with its intrinsic LoRA and both autoencoders."""

    def __init__(
        self, base: LatentDiffusion, intrinsic: IntrinsicVae, lora: Mapping[str, LowRank], preset: Preset
    ):
        """`lora` is keyed as `projections(base.backbone.network)`, the form `read_lora` returns."""
        self.backbone, self.image_vae, self.prompts = base.backbone, base.autoencoder, base.prompts
        check_vae(intrinsic, self.backbone)
        maps = make_autoencoder(intrinsic.config, "meta")
        maps = load_module(
            maps, to_diffusers_names(intrinsic.state), "the intrinsic VAE", self.image_vae.dtype
        )
        self.maps_vae = Autoencoder(maps, intrinsic.latent_scale)
        self.coupling, self.layers = couple(self.backbone.network, lora)
        self.preset = preset

    @classmethod
    def from_preset(
        cls,
        name: str = "tiny",
        *,
        weights: Mapping[str, PathLike] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> IntrinsicPipeline:
        """`weights`: "base" (a file for tiny, else a folder in diffusers' layout), "vae" and "lora" (files).

        The preset tiny has shipped files for those left out. The network computes in `dtype`; the
        autoencoders of the other presets stay in float32. ValueError (WeightsError) for a wrong name or file.
        """
        preset = find_preset(name)
        files = choose_files(name, weights or {})
        base = (
            load_tiny(files["base"], dtype)
            if name == "tiny"
            else load_folder(files["base"], preset.family, dtype)
        )
        intrinsic = load_intrinsic_vae(files["vae"])
        like = torch.empty(0, device=device, dtype=dtype)
        lora = {
            path: update.to(like)
            for path, update in open_intrinsic_lora(files["lora"], base.backbone, name).items()
        }
        return cls(base, intrinsic, lora, preset).to(device)

    def to(self, device: str | torch.device) -> IntrinsicPipeline:
        """Move networks and text encoders; the LoRA stays on the device passed to `from_preset`."""
        for module in (self.backbone.network, self.image_vae.module, self.maps_vae.module, self.prompts):
            module.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        schedule: Schedule | None = None,
        reading: Reading = "blocks",
        maps: bool = True,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        scheduler: Any = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """One image per prompt.

        The initial noise of image i and of its maps is drawn with seed + i. None selects the preset's
        default. `schedule` is w(l, t), the paper's Gaussian by default, with layers numbered by `reading`;
        without `maps` the base samples the image alone. `scheduler` is any of diffusers'; by default DDIM on
        the base's own noise schedule.

        Where w is 0 in every layer of a step, the image rows run in calls of the base model's own shape: with
        OFF the image equals the base's bit for bit.
        """
        started, prompts = time.perf_counter(), [prompt] if isinstance(prompt, str) else list(prompt)
        schedule = Gaussian() if schedule is None else schedule
        size = tuple(self.preset.size if side is None else side for side in (height, width))
        self.check(prompts, size, schedule, reading)
        guidance = self.preset.guidance if guidance is None else guidance
        steering = Steering(schedule, reading, self.encode_prompts(prompts, guidance), guidance)
        shape = (len(prompts), self.backbone.channels, *(side // PIXELS for side in size))
        latents = sample_streams(
            lambda latents, t: self.predict(latents, t, steering),
            draw_noise(seed, shape).to(self.backbone.network.device),
            scheduler or make_scheduler(self.backbone),
            streams=BOTH if maps else ("image",),
            steps=self.preset.steps if steps is None else steps,
            on_step=on_step,
        )
        image = ((self.image_vae.decode(latents["image"]).movedim(1, -1) + 1) / 2).clamp(0, 1).cpu()
        stacked = self.maps_vae.decode(latents["intrinsic"]).clamp(-1, 1).cpu() if maps else None
        return Result(
            image, stacked, tuple(self.prompts.explain(prompts)), seed, time.perf_counter() - started
        )

    def check(
        self, prompts: Sequence[str], size: tuple[int, int], schedule: Schedule, reading: Reading
    ) -> None:
        multiple = self.backbone.multiple
        if not prompts:
            raise ValueError("Expected at least one prompt, got none. Give one for each image.")
        if any(side < multiple or side % multiple for side in size):
            raise ValueError(
                f"Expected height and width as multiples of {multiple} for this base, got {size[0]} x "
                f"{size[1]}. Choose others."
            )
        if isinstance(schedule, Drop):
            check_layers(schedule.layers, self.layers, reading)

    def encode_prompts(self, prompts: list[str], guidance: float) -> dict[str, dict[str, Tensor]]:
        """The prompt tensors, a row per image, for "prompt" and, under CFG, for "empty"."""
        conditions = {"prompt": self.prompts.encode(prompts)}
        if guidance != 1:
            conditions["empty"] = self.prompts.encode([""] * len(prompts))
        return conditions

    def predict(self, latents: Latents, t: Tensor, steering: Steering) -> Latents:
        """The model output after CFG, for the latents of each stream."""
        weights = steering.weights(self.layers, float(t))
        if "intrinsic" not in latents or any(weights.values()):
            return self.run(latents, t, steering, weights)
        cache = KVCache()
        calls = (self.run({stream: latents[stream]}, t, steering, weights, cache) for stream in BOTH)
        return {stream: output for call in calls for stream, output in call.items()}

    def run(
        self,
        latents: Latents,
        t: Tensor,
        steering: Steering,
        weights: Mapping[int, float],
        cache: KVCache | None = None,
    ) -> Latents:
        """One call of the network, with rows (prompt, stream, image)."""
        streams: tuple[Stream, ...] = tuple(latents)
        rows = Rows(tuple(steering.conditions), len(latents[streams[0]]), streams)
        x = torch.cat([latents[stream] for _ in rows.chunks for stream in streams])
        prompt = {
            name: torch.cat([condition[name] for condition in steering.conditions.values() for _ in streams])
            for name in steering.conditions["prompt"]
        }
        with self.coupling.call(rows, weights, cache):
            predictions = self.backbone.predict(x, t.to(x.device), prompt)
        return {stream: steering.guide(rows.select(predictions, stream)) for stream in streams}


def choose_files(name: str, weights: Mapping[str, PathLike]) -> dict[str, Path]:
    """Paths of base, vae and lora."""
    if not isinstance(weights, Mapping) or set(weights) - set(TINY_FILES):
        raise ValueError(
            f"Expected weights as a mapping with {', '.join(TINY_FILES)}, got {weights!r}. Name the files by "
            "these keys."
        )
    files = {**(TINY_FILES if name == "tiny" else {}), **weights}
    missing = [name for name in TINY_FILES if name not in files]
    if missing:
        raise ValueError(
            f"Expected weights with {', '.join(TINY_FILES)} for the preset {name}, got none for "
            f"{', '.join(missing)}. Only the tiny preset has files in SpatialWeave; "
            "docs/intrinsic_training.md describes how to train others."
        )
    return {name: Path(path) for name, path in files.items()}


def open_intrinsic_lora(path: PathLike, backbone: Backbone, base: str) -> dict[str, LowRank]:
    """The low-rank updates of a file by projection; errors name the base `base`.

    ValueError for a LoRA of another base.
    """
    tensors, metadata = open_lora(path)
    updates = read_lora(tensors, projections(backbone.network), base=base, name=str(path), metadata=metadata)
    trained_on = metadata.get("base", backbone.name)
    if trained_on != backbone.name:
        raise ValueError(
            f"Expected a LoRA trained on {backbone.name}, got {path}, trained on {trained_on}. Choose the "
            "LoRA made for this base."
        )
    return updates


def check_vae(intrinsic: IntrinsicVae, backbone: Backbone) -> None:
    config = intrinsic.config
    if (config.latent_channels, config.stride) != (backbone.channels, PIXELS):
        raise ValueError(
            f"Expected an intrinsic VAE with latents of {backbone.channels} channels at 1/{PIXELS} of the "
            f"image's size, as the base has, got {config.latent_channels} channels at 1/{config.stride}. "
            "Choose the one trained for this base."
        )


def make_scheduler(backbone: Backbone) -> Any:
    """diffusers' DDIM on the base's own noise schedule and timestep spacing."""
    return import_diffusers().DDIMScheduler.from_config(backbone.scheduler.config, clip_sample=False)
