"""One sampling run of an image with its intrinsic maps.

The sampler works on ordinary latents of twice the batch size, first the images, then their maps ("rows"), so
that areas, masks, batches and all other features of core work unchanged. Each prediction is one call of
core's calc_cond_batch for all rows. If no image query attends to an intrinsic key (w = 0 in every layer), it
is one call for the images, identical to the base model's, and one for the maps. The `Step` that describes
such a call is passed to the network's forward passes in core's transformer_options.
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
from ....models.intrinsic_ldm.attention import Coupling, KVCache
from ....models.intrinsic_ldm.rows import BOTH, Rows, Stream
from ..shared.memory import explain_sampling
from ..shared.notes import show
from .hooks import Change, image_lora_changes, install
from .noise import SharedNoise, rewind
from .patches import ImageControl, pixart_attention, prompt_attention_for, unet_attention, with_attention
from .settings import KEY, Settings, check_latents, check_run

log = logging.getLogger("spatialweave.intrinsics")
Kinds = comfy.patcher_extension.WrappersMP
SAVE_MEMORY = (
    "start ComfyUI with --lowvram, which keeps less of the base on the card (the maps double the rows of a "
    "batch, not the weights)"
)


@dataclass(frozen=True)
class Step:
    """The streams, weights and KV cache of the forward passes within one prediction."""

    streams: tuple[Stream, ...]
    weights: Mapping[int, float] = field(default_factory=dict)  # w by layer
    cache: KVCache | None = None  # KV cache of the images' pass, read by the maps' pass


IMAGE_ALONE = Step(("image",))


def run_coupled(settings: Settings):
    """An OUTER_SAMPLE wrapper that holds the run's state until the sampler returns or raises."""

    def outer_sample(
        executor, noise, latent_image, sampler, sigmas,
        denoise_mask=None, callback=None, disable_pbar=False, seed=None, **named,
    ):  # fmt: skip
        guider, shapes = executor.class_obj, named.get("latent_shapes")
        check_latents(shapes, settings.base)
        check_run(guider, sampler, settings)
        loras = [] if settings.share_image_loras else image_lora_changes(guider.model_patcher)
        started = comfy.utils.unpack_latents(noise, shapes)[0]  # the image's noise is used for both streams
        shared = SharedNoise(torch.Size((2 * started.shape[0], *started.shape[1:])))
        run = Run(settings, shapes[0][0], loras, shared, tried=[] if settings.is_weighted else None)
        for kind, wrapper in ((Kinds.CALC_COND_BATCH, run.predict), (Kinds.APPLY_MODEL, run.apply)):
            comfy.patcher_extension.add_wrapper_with_key(
                kind, KEY, wrapper, guider.model_options, is_model_options=True
            )
        latent, mask = (
            None if packed is None else as_rows(packed, shapes) for packed in (latent_image, denoise_mask)
        )
        named["latent_shapes"] = [latent.shape]
        rewind(started, seed)
        pixels = [(shapes[0][0], *(8 * side for side in shapes[0][-2:]))]
        try:
            with shared, explain_sampling(guider.model_patcher, pixels, SAVE_MEMORY):
                rows = executor(
                    torch.cat([started] * 2),
                    latent,
                    sampler,
                    sigmas,
                    mask,
                    as_packed(callback),
                    disable_pbar,
                    seed,
                    **named,
                )
            run.finish(guider.model_patcher.load_device)
        finally:
            run.remove_hooks()
        run.report(len(sigmas) - 1)
        return to_packed(rows)

    return outer_sample


def as_rows(packed: Tensor, shapes) -> Tensor:
    """Core's packed nested latent (b, 1, n) as rows (2 b, c, h, w), images first."""
    return torch.cat(comfy.utils.unpack_latents(packed, shapes))


def to_packed(rows: Tensor) -> Tensor:
    return comfy.utils.pack_latents(rows.chunk(2))[0]


def as_packed(callback):
    """Core's step callback with rows packed for it, as it unpacks nested latents itself."""
    return callback and (lambda step, x0, x, total: callback(step, to_packed(x0), to_packed(x), total))


@dataclass
class Run:
    """The state of one run, and the two wrappers around core's calls that use it."""

    settings: Settings
    batch: int
    image_loras: list[Change]
    noise: SharedNoise
    coupling: Coupling = field(default_factory=Coupling)
    options: dict = field(default_factory=dict)  # transformer_options of the current forward pass
    undo: list = field(default_factory=list)
    network: torch.nn.Module | None = None  # on which the hooks are installed
    last: list[Tensor] | None = None  # last x0 (b, c, h, w) of the maps per prompt list
    # (kind of prediction, start time in seconds, DDPM t)
    clock: list[tuple[str, float, float]] = field(default_factory=list)
    tried: list | None = None  # attention overrides known to apply a bias; None if the run needs no bias

    def predict(
        self, executor, model, conds, x_in: Tensor, timestep: Tensor, model_options: dict
    ) -> list[Tensor]:
        """A CALC_COND_BATCH wrapper: predicted x0 rows (2 b, c, h, w) for each list of prompts."""
        if x_in.shape[0] != 2 * self.batch:
            raise ValueError(
                f"Expected {2 * self.batch} latents in a step, got {x_in.shape[0]}: a node regroups the "
                "batch. Remove it from the model's chain."
            )
        if "multigpu_clones" in model_options:
            raise ValueError(
                "Expected a model on one GPU, where an image and its maps attend to each other, got one "
                "split over several. Remove the multi-GPU node."
            )
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
        """The images as the base model predicts them, then the maps with the images' KV cache.

        The maps keep their last prediction once their pass has stopped.
        """
        stopped = not self.settings.keep_maps and self.settings.schedule.ceiling(t) == 0
        self.clock.append(("image alone" if stopped else "apart", time.perf_counter(), t))
        image, maps = x_in.split(self.batch)
        if stopped:
            self.remove_hooks()  # without our hooks this is the base model's own call
            images = executor(model, conds, image, timestep[: self.batch], model_options)
            last = self.last or [maps]
            return [torch.cat([out, last[min(index, len(last) - 1)]]) for index, out in enumerate(images)]
        self.install(model.diffusion_model)
        cache = KVCache()
        options = self.options_for(Step(("image",), cache=cache), model_options)
        images = executor(model, conds, image, timestep[: self.batch], options)
        bare = [
            prompts
            and [{key: value for key, value in prompt.items() if key != "control"} for prompt in prompts]
            for prompts in conds
        ]
        options = self.options_for(Step(("intrinsic",), cache=cache), model_options)
        replaced = options["transformer_options"].get("patches_replace", {})
        options["transformer_options"] = options["transformer_options"] | {
            "patches_replace": replaced | {"attn2": {}}
        }
        # random numbers that a node draws here (ToMe) must not advance the generator of the images' pass
        with torch.random.fork_rng([maps.device] if maps.is_cuda else []):
            self.last = executor(model, bare, maps, timestep[self.batch :], options)
        return [torch.cat(pair) for pair in zip(images, self.last, strict=True)]

    def for_image(self, prompt: dict, controls: dict[int, ImageControl]) -> dict:
        """A prompt whose ControlNet applies to the image rows only; prompts that share one still do."""
        control = prompt.get("control")
        if control is None:
            return prompt
        return prompt | {"control": controls.setdefault(id(control), ImageControl(control, self.batch))}

    def options_for(self, step: Step, options: dict) -> dict:
        """A copy of model options with the step and, for a UNet, our self-attention replacements."""
        options = options | {"transformer_options": options.get("transformer_options", {}) | {KEY: step}}
        if not self.settings.base.is_unet:
            return options
        ours = {
            layer.key[1:]: unet_attention(
                self.network.get_submodule(layer.key[0]).attn1, layer.block, self.coupling, self.tried
            )
            for layer in self.settings.base.layers
        }
        return with_attention(options, ours)

    def apply(
        self,
        executor,
        x: Tensor,
        t: Tensor,
        c_concat,
        c_crossattn,
        control,
        transformer_options: dict,
        **extra,
    ):
        """An APPLY_MODEL wrapper: one forward pass, its rows derived from the batch's conditionings."""
        chunks = tuple(zip(transformer_options["cond_or_uncond"], transformer_options["uuids"], strict=True))
        step = transformer_options.get(KEY, IMAGE_ALONE)  # no step: the base model's own call
        rows = Rows(chunks, self.batch, step.streams)
        rows.check(x.shape[0])
        self.options = transformer_options
        try:
            with (
                self.coupling.call(rows, step.weights, step.cache),
                self.noise.paused(),
                uncompiled() if self.undo else contextlib.nullcontext(),
            ):
                return executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)
        finally:
            self.options = {}

    def install(self, network: torch.nn.Module) -> None:
        """Register the hooks, and PixArt's attention, on the network that core has loaded for this run.

        `remove_hooks` removes them at the end, so that other runs of the same model are unaffected.
        """
        self.network = network
        if self.undo:
            return
        self.undo = [
            handle.remove
            for handle in install(network, self.settings.changes + self.image_loras, self.coupling)
        ]
        if not self.settings.base.is_unet:
            for layer in self.settings.base.layers:
                module = network.blocks[layer.key[0]].attn
                if "forward" in vars(module):
                    raise ValueError(
                        f"Expected the model's own self-attention in block {layer.block} of PixArt, got a "
                        "replacement. Remove the node that installed it from the model's chain."
                    )
                module.forward = pixart_attention(
                    module, layer.block, self.coupling, lambda: self.options, self.tried
                )
                self.undo.append(lambda module=module: vars(module).pop("forward"))

    def remove_hooks(self) -> None:
        self.network = None
        while self.undo:
            self.undo.pop()()

    def finish(self, device: torch.device) -> None:
        """Record the end of the last prediction, after synchronizing a CUDA device."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.clock.append(("end", time.perf_counter(), 0.0))

    def report(self, steps: int) -> None:
        """Log and show how many predictions skipped the maps' pass, and the time saved in seconds."""
        spans: dict[str, list[float]] = {}
        for (kind, begun, _), (_, ended, _) in zip(self.clock, self.clock[1:]):
            spans.setdefault(kind, []).append(ended - begun)
        text = self.settings.describe(
            spans, next((t for kind, _, t in self.clock if kind == "image alone"), None), steps
        )
        log.info(text)
        show(text, self.settings.node_id)


def uncompiled():
    """A context in which compiled modules run eagerly: a graph would hold one layer's w and one run's rows.

    If `torch._dynamo` is not imported nothing was compiled; importing it here would take about a second.
    """
    return torch.compiler.set_stance("force_eager") if "_dynamo" in vars(torch) else contextlib.nullcontext()


def ddpm_time(model, sigma: float) -> float:
    """The DDPM t in [0, 999] with the signal-to-noise ratio of the model's sigma.

    For flow models sigma is flow time in [0, 1]; for all others it is the EDM noise level.
    """
    return sigma_to_ddpm(
        flow_to_sigma(sigma) if isinstance(model.model_sampling, comfy.model_sampling.CONST) else sigma
    )
