"""Prompts and images in, images and their depth out: the three modes in plain torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.geometry.view import View, explain_invalid
from ..core.padding import crop_to, pad_to
from ..core.pictures import Pictures
from ..core.protocols import ImageCodec, OnStep, TextEncoder
from ..core.weights.files import read_header
from .config import (
    DEFAULTS,
    PRESETS,
    RELEASED_DEFAULTS,
    ModalityForcingConfig,
    Mode,
    PipelineDefaults,
    check_mode,
    find_preset,
)
from .depth_code import Z_MAX, net_to_depth
from .inputs import (
    Notes,
    Request,
    check_floor,
    check_seed,
    check_streams,
    choose_settings,
    count_steps,
    encode_view,
    explain_trained_size,
    find_size,
    match_batches,
    pad_size,
    read_given_depth,
    read_given_image,
)
from .network import ModalityForcing
from .sampling import ALL_TIMES, PartialDepth, check_interval, draw_noise, make_schedule, sample
from .weights import load_network, read_trained_size

TINY_NETWORK = Path(__file__).with_name("tiny.safetensors")
SMALLER = "Choose the trained size, and bring the depth to a larger image with Upscale Depth (upscale_view)."


@dataclass(frozen=True)
class Result:
    """Results of one batch. Both latents have the padded size, so that they fit together and can be sampled
    further.
    """

    image: Tensor  # (b, h, w, 3) in [0, 1]
    view: View
    rgb_latent: Tensor  # (b, c, h, w)
    depth_net: Tensor  # (b, 1, H, W), network space
    notes: tuple[str, ...]  # a sentence for every input that was changed or ignored
    seed: int
    seconds: float
    alpha: Tensor | None = None  # (b, h, w), of the input image


class ModalityForcingPipeline:
    """A network with the image codec and the text encoder it was trained with.

    `explain_prompt` returns a sentence about what the text encoder cannot read in a prompt, or None;
    `trained_size` is the side in pixels of the images it was trained on, if known.
    """

    def __init__(
        self,
        network: ModalityForcing,
        config: ModalityForcingConfig,
        image_codec: ImageCodec,
        text_encoder: TextEncoder,
        *,
        defaults: PipelineDefaults = RELEASED_DEFAULTS,
        explain_prompt: Callable[[str], str | None] | None = None,
        trained_size: int | None = None,
    ):
        self.network, self.config = network.train(False), config
        self.image_codec, self.text_encoder = image_codec, text_encoder
        self.defaults, self.explain_prompt, self.trained_size = defaults, explain_prompt, trained_size

    @classmethod
    def from_preset(
        cls,
        name: str = "tiny",
        *,
        weights: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        """The preset with its shipped weights, or with `weights`: a network file, or a training run's output
        folder, which holds a text encoder as well. ValueError lists the presets, or names the missing part.
        """
        find_preset(name)
        if name != "tiny":
            raise ValueError(
                f"Expected weights of {name}, which this pack does not include (it includes those of tiny), "
                "got none. Load them with load_network and build ModalityForcingPipeline with FLUX.2's "
                "autoencoder and text encoder, or use the nodes in ComfyUI."
            )
        # late: the pipeline takes any codec and encoder, and only this preset needs the tiny ones
        from ..tiny.text import explain_prompt
        from ..tiny.weights import TEXT_FILE, load_codec, load_text_encoder

        run = Path(weights) if weights and Path(weights).is_dir() else None
        file = run / "network.safetensors" if run else weights or TINY_NETWORK
        network, config = load_network(file, config=PRESETS[name], dtype=dtype, device=device)
        text_file = run / "text.safetensors" if run else TEXT_FILE
        codec, text = (
            load_codec(device=device).train(False),
            load_text_encoder(text_file, device=device).train(False),
        )
        size = read_trained_size(read_header(file), config)
        return cls(
            network, config, codec, text,
            defaults=DEFAULTS[name], explain_prompt=explain_prompt, trained_size=size,
        )  # fmt: skip

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        *,
        mode: Mode = "joint",
        image: Any = None,
        depth: Any = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        log2_alpha: float | None = None,
        depth_guidance: float | None = None,
        seed: int = 0,
        refine: bool = False,
        batch_size: int = 1,
        x0_t_min: float = 0.0,
        on_step: OnStep | None = None,
        guidance_interval: tuple[float, float] = ALL_TIMES,
    ) -> Result:
        """Sample a batch. None takes the preset's default; errors are ValueErrors.

        `mode`: joint samples both streams from the prompt, and keeps the valid pixels of a `depth` if there
        is one;
        image_to_depth needs `image`, see `read_pictures`; depth_to_image needs `depth`, a View, or z-depth in
        which NaN, infinite, zero and negative pixels are missing; the network sees noise there.
        `height`, `width`: joint mode's size; in other modes the input is resized to it, or keeps its own.
        `guidance` acts on both streams, or, with `depth_guidance`, on the image alone; 1 is off.
        `log2_alpha` (joint): > 0 denoises the image first, 0 both at once, < 0 the depth first.
        `refine` (joint): sample the depth again, from the finished image.
        `x0_t_min`: 0.05 reproduces the released sampler.
        `guidance_interval`: the times, from 1 (noise) down to 0 (clean), between which guidance acts; a step
        outside takes half the time.
        """
        started, asked_size = time.perf_counter(), (height, width)
        check_streams(check_mode(mode), image, depth, refine)
        pictures = None if image is None else read_given_image(image, asked_size)
        view, depth_notes = (None, ()) if depth is None else read_given_depth(depth, asked_size)
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        size = find_size(pictures, view, asked_size, self.defaults.size)
        defaults = (
            self.defaults.kept_depth if mode == "joint" and view is not None else getattr(self.defaults, mode)
        )
        batch = match_batches(prompts, pictures, view, batch_size)
        padded, size_notes = pad_size(size, self.config.depth_patch)
        size_notes += explain_trained_size(size, self.trained_size, SMALLER)
        settings, settings_notes = choose_settings(
            defaults, mode, steps, guidance, log2_alpha=log2_alpha, depth_guidance=depth_guidance
        )
        request = Request(
            mode=mode,
            prompts=prompts,
            batch=batch,
            size=size,
            padded=padded,
            settings=settings,
            seed=check_seed(seed),
            x0_t_min=check_floor(x0_t_min),
            refine=refine,
            guidance_interval=check_interval(guidance_interval),
        )
        rgb, net = self.run(request, pictures, view, on_step)
        images = (
            self.decode_image(rgb, request)
            if pictures is None
            else pictures.rgb.expand(request.batch, -1, -1, -1)
        )
        view, view_notes = self.finish_view(view if mode == "depth_to_image" else None, net, images, request)
        alpha = (
            None
            if pictures is None or pictures.alpha is None
            else pictures.alpha.expand(request.batch, -1, -1)
        )
        image_notes = () if pictures is None else pictures.notes
        notes = (
            image_notes + depth_notes + size_notes + settings_notes + self.explain(prompts) + view_notes
        )
        return Result(images, view, rgb, net, notes, seed, time.perf_counter() - started, alpha)

    def run(
        self, request: Request, pictures: Pictures | None, view: View | None, on_step: OnStep | None
    ) -> tuple[Tensor, Tensor]:
        """The sampling run, or two with refine: clean RGB latent and network-space depth."""
        patch, (height, width) = self.config.depth_patch, request.padded
        rgb_shape = (request.batch, self.config.in_channels, height // patch, width // patch)
        rgb, net = (
            x.to(self.device) for x in draw_noise(request.seed, rgb_shape, (request.batch, 1, height, width))
        )
        kept = None
        if view is not None:
            encoded, mask = self.encode_view(view, request)
            if request.mode == "depth_to_image":
                net = torch.where(mask, encoded, net)  # missing pixels remain noise, as in training
            else:
                kept = PartialDepth(encoded, net, mask)
        if pictures is not None:
            rgb = self.encode_image(pictures, request)

        settings, shift = request.settings, {"mu": self.config.shift_mu, "sigma": self.config.shift_sigma}
        schedule = make_schedule(request.mode, settings.steps, log2_alpha=settings.log2_alpha, **shift)
        total = settings.steps * (2 if request.refine else 1)
        fixed = {
            "context": self.encode_text(request.prompts),
            "x0_t_min": request.x0_t_min,
            "partial_depth": kept,
        }
        guided = {}
        # if every prompt is empty, CFG would subtract equal predictions
        if max(settings.guidance, settings.depth_guidance or 1.0) > 1 and any(request.prompts):
            guided = {
                "null_context": self.encode_text([""]),
                "guidance": settings.guidance,
                "depth_guidance": settings.depth_guidance,
                "guidance_interval": request.guidance_interval,
            }
        rgb, depth = sample(
            self.call_network, rgb, net, schedule, **fixed, **guided, on_step=count_steps(on_step, 0, total)
        )
        if request.refine:
            schedule = make_schedule("image_to_depth", settings.steps, **shift)
            rgb, depth = sample(
                self.call_network,
                rgb,
                net,
                schedule,
                **fixed,
                on_step=count_steps(on_step, settings.steps, total),
            )
        return rgb, depth

    def call_network(
        self, rgb: Tensor, depth: Tensor, context: Tensor, t_rgb: Tensor, t_depth: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sampler's state is float32; the network runs in its own precision."""
        dtype = self.network.img_in.weight.dtype
        velocity, x0 = self.network(rgb.to(dtype), depth.to(dtype), context, t_rgb, t_depth)
        return velocity.float(), x0.float()

    @property
    def device(self) -> torch.device:
        return self.network.img_in.weight.device

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        return self.text_encoder.encode(list(prompts)).to(self.device, torch.float32)

    def encode_image(self, pictures: Pictures, request: Request) -> Tensor:
        """Input images -> clean latent (b, c, h, w), edges replicated up to the padded size."""
        image = pad_to(pictures.rgb.movedim(-1, 1) * 2 - 1, request.padded)
        return self.image_codec.encode(image.to(self.device)).float().expand(request.batch, -1, -1, -1)

    def decode_image(self, latent: Tensor, request: Request) -> Tensor:
        """Latent -> images (b, h, w, 3) in [0, 1] of the requested size."""
        image = self.image_codec.decode(latent).float() * 0.5 + 0.5
        return crop_to(image.clamp(0, 1), request.size).movedim(1, -1).cpu()

    def encode_view(self, view: View, request: Request) -> tuple[Tensor, Tensor]:
        """Input depth -> network space and validity mask, both (b, 1, H, W) of the padded size."""
        net, mask = encode_view(view, request.padded, infinite_sky=self.config.infinite_sky)
        return tuple(x.to(self.device).expand(request.batch, -1, -1, -1) for x in (net, mask))

    def finish_view(
        self, given: View | None, net: Tensor, image: Tensor, request: Request
    ) -> tuple[View, Notes]:
        """The depth of the result: the input's in its units, or the sampled one, relative."""
        if given is not None:
            cameras = {"sky": given.sky, "intrinsics": given.intrinsics, "world_to_cam": given.world_to_cam}
            return View.from_depth(
                given.depth, units=given.units, mask=given.mask, image=image, **cameras
            ), ()
        net = crop_to(net, request.size).cpu()
        depth = net_to_depth(net, infinite_sky=self.config.infinite_sky)
        return View.from_depth(depth, units="relative", image=image), explain_sampled_depth(depth, net)

    def explain(self, prompts: Sequence[str]) -> Notes:
        """What the text encoder cannot read, once per prompt."""
        if self.explain_prompt is None:
            return ()
        return tuple(filter(None, (self.explain_prompt(prompt) for prompt in dict.fromkeys(prompts))))


def explain_sampled_depth(depth: Tensor, net: Tensor) -> Notes:
    """Notes on a sampled depth (decoded, and in network space): clamped, infinite and invalid pixels."""
    notes = []
    far = int((torch.isfinite(depth) & (net > Z_MAX)).sum())
    if far:
        limit = f"{1 / (2 - Z_MAX):.0f} times the mean"
        notes.append(f"{far} of {net.numel()} depth pixels lie beyond {limit} and were set to that distance.")
    sky = int(torch.isinf(depth).sum())
    if sky:
        notes.append(f"{sky} of {net.numel()} depth pixels are sky: infinitely far, and masked.")
    holes = explain_invalid(torch.where(torch.isinf(depth), torch.ones_like(depth), depth))
    if holes:
        notes.append(f"In the sampled depth, {holes}")
    return tuple(notes)
