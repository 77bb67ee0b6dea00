"""The tiny system in plain Python: prompts to images, or to images beside their intrinsic maps, with diffusers' networks and schedulers.

    made = CoGeneration.from_files()(["a red ball behind a blue box"], schedule=Gaussian(), seed=3)
    made.image                      # b h w 3 in [0, 1]
    decode_pictures(made.maps)      # depth, normals, segmentation and line art, see pipeline.py

In ComfyUI nodes do the same inside core's sampling (nodes/host/intrinsic_ldm/run.py); equation, LoRA and schedules are shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.diffusion.guidance import guide
from ..core.weights.files import fill_module
from ..tiny.text import TinyTextEncoder
from . import tiny
from .attention import Kept
from .config import GUIDANCE, STEPS
from .layers import Layer, Reading, check_layers
from .lora import LowRank, Projection, open_lora, read_lora
from .processors import couple, projections
from .rows import BOTH, Rows, Stream
from .sampling import Latents, OnStep, sample_streams
from .schedules import OFF, Drop, Schedule
from .training.bases import import_diffusers
from .weights import IntrinsicVae, load_intrinsic_vae, to_diffusers_names

PathLike = str | os.PathLike
ReadLora = Callable[[Mapping[str, Projection]], dict[str, LowRank]]


@dataclass(frozen=True)
class Generated:
    """image b H W 3 in [0, 1]; maps b 8 H W in [-1, 1] as `stack_maps` lays them, None where only the image was asked for."""

    image: Tensor
    maps: Tensor | None


@dataclass(frozen=True)
class Steering:
    """What one call decides for all of its steps: w of each layer, the contexts b n d by prompt, and how strongly they steer."""

    schedule: Schedule
    reading: Reading
    contexts: Mapping[str, Tensor]  # "prompt", and "empty" where there is guidance
    guidance: float

    def weights(self, layers: Sequence[Layer], t: float) -> dict[int, float]:
        return {layer.block: self.schedule.weight(layer.number(self.reading), t) for layer in layers}

    def guide(self, said: Tensor) -> Tensor:
        """(prompts, b, c, h, w) to (b, c, h, w)."""
        return said[0] if len(said) == 1 else guide(said[0], said[1], self.guidance)


class CoGeneration:
    """The base with its LoRA, both autoencoders and the text encoder."""

    def __init__(self, base: tiny.TinyBase, intrinsic: IntrinsicVae, read: ReadLora, dtype: torch.dtype = torch.float32):
        """`read` gives the LoRA by its projections' names when it is told which projections there are.

        UNet and autoencoders compute in `dtype`, the text encoder, which runs once a prompt, in float32.
        """
        diffusers = import_diffusers()
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(**tiny.unet_for_diffusers())
            image = diffusers.AutoencoderKL(**tiny.VAE.for_diffusers(3))
            maps = diffusers.AutoencoderKL(**intrinsic.config.for_diffusers())
            text = TinyTextEncoder(tiny.TEXT_WIDTH, tiny.TEXT_LAYERS)
        self.unet = load_module(unet, base.unet, "the tiny base's UNet", dtype)
        self.image_vae, self.image_scale = load_module(image, base.vae, "the tiny base's autoencoder", dtype), base.vae_scale
        self.maps_vae = load_module(maps, to_diffusers_names(intrinsic.state), "the intrinsic VAE", dtype)
        self.maps_scale = intrinsic.latent_scale
        self.text = load_module(text, base.text, "the tiny base's text encoder")
        self.coupling, self.layers = couple(self.unet, read(projections(self.unet)))

    @classmethod
    def from_files(
        cls, base: PathLike = tiny.BASE_FILE, vae: PathLike = tiny.VAE_FILE, lora: PathLike = tiny.LORA_FILE, *, device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> CoGeneration:  # fmt: skip
        """The shipped files, or others; WeightsError or ValueError says what a wrong one is. The networks compute in `dtype`."""

        def read(found: Mapping[str, Projection]) -> dict[str, LowRank]:
            tensors, metadata = open_lora(lora)
            parts = read_lora(tensors, found, base=tiny.NAME, name=str(lora), metadata=metadata)
            like = torch.empty(0, device=device, dtype=dtype)
            return {name: part.to(like) for name, part in parts.items()}

        return cls(tiny.load_base(base), load_intrinsic_vae(vae), read, dtype).to(device)

    def to(self, device: str) -> CoGeneration:
        for module in (self.unet, self.image_vae, self.maps_vae, self.text):
            module.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], *, schedule: Schedule = OFF, reading: Reading = "blocks", maps: bool = True, steps: int = STEPS,
        guidance: float = GUIDANCE, seed: int = 0, size: int = tiny.SIZE, scheduler: Any = None, on_step: OnStep | None = None,
    ) -> Generated:  # fmt: skip
        """Picture i starts from noise of seed + i, and so do its maps. Without `maps` the base samples the image alone.

        Where w is 0 in every layer of a step the image's rows go through the network as the base's do, in calls of the same shape: with
        OFF the image is the base's bit for bit.
        """
        self.check(prompts, size, schedule, reading)
        device = self.unet.device
        contexts = {"prompt": self.text.encode(list(prompts))}
        if guidance != 1:
            contexts["empty"] = self.text.encode([""] * len(prompts))
        steering = Steering(schedule, reading, contexts, guidance)
        noise = draw_noise(seed, len(prompts), size).to(device)
        latents = sample_streams(
            lambda latents, t: self.predict(latents, t, steering), noise, scheduler or make_scheduler(),
            streams=BOTH if maps else ("image",), steps=steps, on_step=on_step,
        )  # fmt: skip
        image = (decode(self.image_vae, latents["image"] / self.image_scale).movedim(1, -1) + 1) / 2
        stacked = decode(self.maps_vae, latents["intrinsic"] / self.maps_scale).clamp(-1, 1).cpu() if maps else None
        return Generated(image.clamp(0, 1).cpu(), stacked)

    def check(self, prompts: Sequence[str], size: int, schedule: Schedule, reading: Reading) -> None:
        least = tiny.VAE.stride * 2 ** (len(tiny.WIDTHS) - 1)
        if not prompts or size < least or size % least:
            raise ValueError(f"{len(prompts)} prompts for pictures of {size} pixels arrived; give at least one, and a multiple of {least}.")
        if isinstance(schedule, Drop):
            check_layers(schedule.layers, self.layers, reading)

    def predict(self, latents: Latents, t: Tensor, steering: Steering) -> Latents:
        """The network's guided word on the latents of each stream."""
        weights = steering.weights(self.layers, float(t))
        if "intrinsic" not in latents or any(weights.values()):
            return self.run(latents, t, steering, weights)
        kept = Kept()
        return {stream: self.run({stream: latents[stream]}, t, steering, weights, kept)[stream] for stream in BOTH}

    def run(
        self, latents: Latents, t: Tensor, steering: Steering, weights: Mapping[int, float], kept: Kept | None = None
    ) -> Latents:
        """One call of the network; its rows are (prompt, stream, picture)."""
        streams: tuple[Stream, ...] = tuple(latents)
        chunks, batch = tuple(steering.contexts), len(latents[streams[0]])
        rows = Rows(chunks, batch, streams)
        x = torch.cat([latents[stream] for _ in chunks for stream in streams])
        context = torch.cat([steering.contexts[chunk] for chunk in chunks for _ in streams])
        dtype = self.unet.dtype
        with self.coupling.call(rows, weights, kept):
            said = self.unet(x.to(dtype), t.to(x.device), encoder_hidden_states=context.to(dtype), return_dict=False)[0].float()
        return {stream: steering.guide(rows.select(said, stream)) for stream in streams}


def load_module(module: nn.Module, state: Mapping[str, Tensor], what: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module with these weights, in inference mode, its parameters as `from_pretrained` leaves them.

    They keep `requires_grad`: for few tokens torch multiplies a batch by weights that want gradients in one product (mm), by others
    row by row (bmm), even where nothing is recorded, and on some processors the two round differently. A base of diffusers' has weights
    that want gradients, so its image would not be ours bit for bit.
    """
    module = nn.Module.to(module, dtype)  # torch's own, as diffusers' warns of the precision; filling keeps a module's
    return fill_module(module, state, what=what).train(False)


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """float32 b c H W of latents b c h w, whatever the autoencoder computes in."""
    return vae.decode(latents.to(vae.dtype)).sample.float()


def draw_noise(seed: int, count: int, size: int) -> Tensor:
    """Noise count c h w for pictures of `size` pixels: each picture's is a function of its own seed, whatever the batch."""
    shape = (tiny.VAE.latent_channels, size // tiny.VAE.stride, size // tiny.VAE.stride)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + number)) for number in range(count)])


def make_scheduler() -> Any:
    """diffusers' DDIM on the base's own noise, from the noisiest time down to a clean picture."""
    return import_diffusers().DDIMScheduler(
        **tiny.NOISE, prediction_type=tiny.PREDICTION, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
