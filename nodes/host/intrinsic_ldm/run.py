"""One sampling run of an image with its intrinsic maps.

The sampler works on ordinary latents, twice as many: the images, then their maps ("rows"). So areas, masks,
batches and everything else that core does with a latent works unchanged. Each prediction is one call of core's
calc_cond_batch for all rows, or, where no image query sees an intrinsic key (w = 0 in every layer), one for the
images, exactly as the base model's, and one for the maps. What such a call is for (`Step`) travels to the calls of
the network inside it in core's transformer_options.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import comfy.model_sampling
import comfy.patcher_extension
import comfy.utils
import torch
from torch import Tensor

from ....models.core.diffusion.ddpm import flow_to_sigma, sigma_to_ddpm
from ....models.intrinsic_ldm.attention import Coupling, Kept
from ....models.intrinsic_ldm.rows import BOTH, Rows, Stream
from ..shared.memory import explain_sampling
from ..shared.notes import show
from .hooks import Change, image_lora_changes, install
from .noise import SharedNoise, rewind
from .patches import ImageControl, pixart_attention, prompt_attention_for, unet_attention, with_attention
from .settings import KEY, Settings, check_latents, check_run

log = logging.getLogger("spatialweave.intrinsics")
Kinds = comfy.patcher_extension.WrappersMP
LESS_HELD = (
    "start ComfyUI with --lowvram, which keeps less of the base on the card (the maps double the rows of a batch, not the weights)"
)


@dataclass(frozen=True)
class Step:
    """What the calls of the network within one prediction are for."""

    streams: tuple[Stream, ...]
    weights: Mapping[int, float] = field(default_factory=dict)  # w by layer
    kept: Kept | None = None  # the image's keys and values, from its call to its maps' call


IMAGE_ALONE = Step(("image",))


def run_coupled(settings: Settings):
    """An OUTER_SAMPLE wrapper: the run's state lives from here until the sampler is done, failed or interrupted."""

    def outer_sample(
        executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **named
    ):  # fmt: skip
        guider, shapes = executor.class_obj, named.get("latent_shapes")
        check_latents(shapes, settings.base)
        check_run(guider, sampler, settings)
        loras = [] if settings.share_image_loras else image_lora_changes(guider.model_patcher)
        run = Run(settings, shapes[0][0], loras, tried=[] if settings.is_weighted else None)
        for kind, wrapper in ((Kinds.CALC_COND_BATCH, run.predict), (Kinds.APPLY_MODEL, run.apply)):
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        latent, mask = (None if packed is None else as_rows(packed, shapes) for packed in (latent_image, denoise_mask))
        started = comfy.utils.unpack_latents(noise, shapes)[0]  # the image's noise, for both
        named["latent_shapes"] = [latent.shape]
        rewind(started, seed)
        pixels = [(shapes[0][0], *(8 * side for side in shapes[0][-2:]))]
        try:
            with SharedNoise(latent.shape), explain_sampling(guider.model_patcher, pixels, LESS_HELD):
                rows = executor(torch.cat([started] * 2), latent, sampler, sigmas, mask, as_packed(callback), disable_pbar, seed, **named)
            run.finish(guider.model_patcher.load_device)
        finally:
            run.take_off()
        run.report(len(sigmas) - 1)
        return to_packed(rows)

    return outer_sample


def as_rows(packed: Tensor, shapes) -> Tensor:
    """Core's packed pair (b, 1, n) as rows (2 b, c, h, w), images first."""
    return torch.cat(comfy.utils.unpack_latents(packed, shapes))


def to_packed(rows: Tensor) -> Tensor:
    return comfy.utils.pack_latents(rows.chunk(2))[0]


def as_packed(callback):
    """Core's callback unpacks what it gets."""
    return callback and (lambda step, x0, x, total: callback(step, to_packed(x0), to_packed(x), total))


@dataclass
class Run:
    """The state of one run, and the two wrappers around core's calls that use it."""

    settings: Settings
    batch: int
    image_loras: list[Change]
    coupling: Coupling = field(default_factory=Coupling)
    options: dict = field(default_factory=dict)  # of the call of the network that is under way
    undo: list = field(default_factory=list)
    last: list[Tensor] | None = None  # the maps as last predicted, by prompt
    clock: list[tuple[str, float, float]] = field(default_factory=list)  # (kind of step, when it began, its t)
    tried: list | None = None  # attentions of other packs that take weights; None where there are none to take

    def predict(self, executor, model, conds, x_in: Tensor, timestep: Tensor, model_options: dict) -> list[Tensor]:
        """A CALC_COND_BATCH wrapper: for every list of prompts the clean rows."""
        if x_in.shape[0] != 2 * self.batch:
            raise ValueError(f"{x_in.shape[0]} latents came to a step, wanted {2 * self.batch}: a node in the model's line regroups them.")
        if "multigpu_clones" in model_options:
            raise ValueError("Several GPUs share this model, but an image and its maps must meet on one: take the multi-GPU node out.")
        t = ddpm_time(model, float(timestep.max()))
        weights = self.settings.weights(t)
        if any(weights.values()):
            step = Step(BOTH, weights)
            return self.together(executor, model, conds, x_in, timestep, model_options, t, step)
        return self.apart(executor, model, conds, x_in, timestep, model_options, t)

    def together(self, executor, model, conds, x_in, timestep, model_options, t, step: Step) -> list[Tensor]:
        self.clock.append(("coupled", time.perf_counter(), t))
        self.install(model.diffusion_model)
        controls: dict[int, ImageControl] = {}
        conds = [prompts and [self.for_image(prompt, controls) for prompt in prompts] for prompts in conds]
        options = prompt_attention_for(self.options_for(step, model_options), lambda: self.coupling.rows)
        outs = executor(model, conds, x_in, timestep, options)
        self.last = [out[self.batch :] for out in outs]
        return outs

    def apart(self, executor, model, conds, x_in, timestep, model_options, t) -> list[Tensor]:
        """The images as the base model has them, then, unless they have stopped, the maps beside the images' keys and values."""
        stopped = not self.settings.keep_maps and self.settings.schedule.ceiling(t) == 0
        self.clock.append(("image alone" if stopped else "apart", time.perf_counter(), t))
        image, maps = x_in.split(self.batch)
        if stopped:
            self.take_off()  # the base model's own call, in every respect
            images, held = executor(model, conds, image, timestep[: self.batch], model_options), self.last or [maps]
            return [torch.cat([out, held[min(index, len(held) - 1)]]) for index, out in enumerate(images)]
        self.install(model.diffusion_model)
        kept = Kept()
        options = self.options_for(Step(("image",), kept=kept), model_options)
        images = executor(model, conds, image, timestep[: self.batch], options)
        bare = [prompts and [{key: value for key, value in prompt.items() if key != "control"} for prompt in prompts] for prompts in conds]
        options = self.options_for(Step(("intrinsic",), kept=kept), model_options)
        replaced = options["transformer_options"].get("patches_replace", {})
        options["transformer_options"] = options["transformer_options"] | {"patches_replace": replaced | {"attn2": {}}}
        with torch.random.fork_rng([maps.device] if maps.is_cuda else []):  # what a node draws on the way (ToMe) is not the image's
            self.last = executor(model, bare, maps, timestep[self.batch :], options)
        return [torch.cat(pair) for pair in zip(images, self.last, strict=True)]

    def for_image(self, prompt: dict, controls: dict[int, ImageControl]) -> dict:
        """A prompt whose ControlNet sees the image rows only; prompts with one ControlNet keep sharing it."""
        control = prompt.get("control")
        if control is None:
            return prompt
        return prompt | {"control": controls.setdefault(id(control), ImageControl(control, self.batch))}

    def options_for(self, step: Step, options: dict) -> dict:
        """A copy of model options that carries the step and, for a UNet, our self-attention."""
        options = options | {"transformer_options": options.get("transformer_options", {}) | {KEY: step}}
        if not self.settings.base.is_unet:
            return options
        ours = {layer.place[1:]: unet_attention(layer.block, self.coupling, self.tried) for layer in self.settings.base.layers}
        return with_attention(options, ours)

    def apply(self, executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options: dict, **extra):
        """An APPLY_MODEL wrapper: one call of the network, with its rows known from the prompts it is for."""
        chunks = tuple(zip(transformer_options["cond_or_uncond"], transformer_options["uuids"], strict=True))
        step = transformer_options.get(KEY, IMAGE_ALONE)  # without one it is the base model's own call
        rows = Rows(chunks, self.batch, step.streams)
        rows.check(x.shape[0])
        self.options = transformer_options
        try:
            with self.coupling.call(rows, step.weights, step.kept), uncompiled() if self.undo else contextlib.nullcontext():
                return executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)
        finally:
            self.options = {}

    def install(self, network: torch.nn.Module) -> None:
        """With the model where core has put it. Other runs of the same model never see it: `take_off` undoes it."""
        if self.undo:
            return
        self.undo = [handle.remove for handle in install(network, self.settings.changes + self.image_loras, self.coupling)]
        if not self.settings.base.is_unet:
            for layer in self.settings.base.layers:
                module = network.blocks[layer.place[0]].attn
                if "forward" in vars(module):
                    raise ValueError(f"Another node replaced PixArt's attention {layer.block}: take it out of the model's line.")
                module.forward = pixart_attention(module, layer.block, self.coupling, lambda: self.options, self.tried)
                self.undo.append(lambda module=module: vars(module).pop("forward"))

    def take_off(self) -> None:
        while self.undo:
            self.undo.pop()()

    def finish(self, device: torch.device) -> None:
        """The end of the last step, when all that a GPU was given is done."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.clock.append(("end", time.perf_counter(), 0.0))

    def report(self, steps: int) -> None:
        """How often the maps were left out, and what that saved, measured in this run."""
        spans: dict[str, list[float]] = {}
        for (kind, begun, _), (_, ended, _) in zip(self.clock, self.clock[1:]):
            spans.setdefault(kind, []).append(ended - begun)
        text = self.settings.describe(spans, next((t for kind, _, t in self.clock if kind == "image alone"), None), steps)
        log.info(text)
        show(text, self.settings.node_id)


def uncompiled():
    """A context in which what was given to torch.compile runs as written: a compiled graph would hold one layer's w and one run's rows.

    Nothing was compiled where its tracer is not loaded, which would take a second.
    """
    return torch.compiler.set_stance("force_eager") if "_dynamo" in vars(torch) else contextlib.nullcontext()


def ddpm_time(model, sigma: float) -> float:
    """The model's noise level as DDPM t of equal signal-to-noise ratio: a flow model counts in flow time, every other in sigma."""
    return sigma_to_ddpm(flow_to_sigma(sigma) if isinstance(model.model_sampling, comfy.model_sampling.CONST) else sigma)
