"""Modality Forcing as a core MODEL: one nested latent (image, depth), stock samplers, a timestep per stream.

The sampler steps one flow latent at the image's sigma. The depth stream is rescaled to that sigma
(models/core/diffusion/carry.py), so its own schedule, noisier or cleaner by a constant odds ratio, needs no
sampler of ours. A stream whose noise mask is 0 is fixed: it keeps its values and its timestep is 0.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.nested_tensor
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ....models.core.diffusion.carry import carried_velocity, from_carried, release, to_carried
from ....models.core.diffusion.flow import warp_time
from ....models.modality_forcing.config import ModalityForcingConfig
from ....models.modality_forcing.network import ModalityForcing, make_depth_head
from ..shared.last_resort import describe
from ..shared.memory import explain_sampling
from .attention import attend_in_parts
from .previews import with_pair_preview
from .refused_attachments import check_conditioning, check_options, check_patches, check_unconditional
from .refused_loras import check_loras
from .refused_samplers import check_sampler, check_sigmas

# Divisible by every step count to 10 and by 12, 14, 15, 16, 18, 20, 24, 25, 28, 30, 36, 40, 50: core's
# scheduler "simple"
# picks table rows, and is then exactly the published schedule.
SCHEDULE_ROWS = 25200


class JointTimes(NamedTuple):
    """What the network needs besides the packed latent, in float32 regardless of the network's precision."""

    image: Tensor  # (b,) timestep of the image stream
    depth: Tensor  # (b,) timestep of the depth stream
    seen_depth: Tensor  # (b, 1, H, W), depth at its own noise level
    carried_depth: Tensor  # (b, 1, H, W), the same as a carried latent
    sigma: Tensor  # (b,) the sampler's noise level, above 0


class HostedNetwork(ModalityForcing):
    """The network in the form core calls: streams in a list, timesteps from `JointModel.process_timestep`."""

    def __init__(self, *, config: ModalityForcingConfig, operations, device=None, dtype=None, **described):
        super().__init__(config, operations=operations, device=device, dtype=dtype)
        # core's layers for quantized files have one precision for all others; the head keeps float32
        made = {"operations": comfy.ops.manual_cast, "device": device, "dtype": torch.float32}
        self.depth_final_layer = make_depth_head(config, **made)
        self.dtype = dtype

    def forward(
        self,
        x: list[Tensor],
        timestep: JointTimes,
        context: Tensor,
        transformer_options: dict,
        log2_alpha: float,
        **kwargs,
    ):
        """The velocities of both streams, the depth's as that of the carried latent."""
        check_patches(transformer_options)
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self.predict, self, wrappers)
        return executor.execute(x, timestep, context, transformer_options, log2_alpha=log2_alpha, **kwargs)

    def predict(
        self,
        x: list[Tensor],
        timestep: JointTimes,
        context: Tensor,
        transformer_options: dict,
        *,
        log2_alpha: float,
        **kwargs,
    ):
        times, attend = timestep, partial(attend_in_parts, transformer_options=transformer_options)
        velocity, x0 = super().forward(
            x[0], times.seen_depth, context, times.image, times.depth, attend=attend
        )
        return [velocity, carried_velocity(times.carried_depth, x0, times.sigma, log2_alpha)]


class JointModel(comfy.model_base.Flux):
    """Core's view of the model: a Flux with one more stream, so that core maps FLUX.2 LoRAs to its layers.

    `log2_alpha` is the order of the streams: above 0 the image resolves first, below it the depth.
    """

    log2_alpha = 0.0

    def __init__(self, model_config: JointConfig, device=None):
        super().__init__(model_config, device=device, unet_model=HostedNetwork)
        self.model_sampling.set_parameters(shift=model_config.network.shift_mu, timesteps=SCHEDULE_ROWS)

    def extra_conds(self, **kwargs):
        """The network's conditioning. Flux's own reference images and guidance do not apply."""
        shapes, context = kwargs.get("latent_shapes"), kwargs.get("cross_attn")
        check_latent(shapes, self.model_config.network)
        check_context(context, self.model_config.network)
        conds = {
            # prompts of unequal length run in separate batches; repeating one would change it
            "c_crossattn": comfy.conds.CONDRegular(context),
            "latent_shapes": comfy.conds.CONDConstant(shapes),
            "log2_alpha": comfy.conds.CONDConstant(self.log2_alpha),
        }
        mask = kwargs.get("denoise_mask")
        if mask is not None:
            conds["noisy"] = comfy.conds.CONDRegular(noisy_streams(mask, shapes))
        return conds

    def process_timestep(
        self,
        timestep: Tensor,
        *,
        x: Tensor,
        latent_shapes,
        log2_alpha: float,
        noisy: Tensor | None = None,
        **kwargs,
    ):
        # core's SD3 sampling patch counts to 1000
        sigma = timestep / getattr(self.model_sampling, "multiplier", 1.0)
        image, depth = (sigma, sigma) if noisy is None else (sigma.unsqueeze(1) * noisy.float()).unbind(1)
        carried = comfy.utils.unpack_latents(x, latent_shapes)[1].float()
        return JointTimes(
            image, warp_time(depth, log2_alpha), release(carried, depth, log2_alpha), carried, sigma
        )

    def scale_latent_inpaint(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, denoise_mask: Tensor | None = None, **kwargs
    ):
        """Values where the mask is 0: the clean latent of a fixed stream, else the latent at this noise
        level.
        """
        noised = super().scale_latent_inpaint(sigma=sigma, noise=noise, latent_image=latent_image)
        if denoise_mask is None:
            return noised
        shapes = self.latent_shapes
        streams = [
            comfy.utils.unpack_latents(tensor, shapes)
            for tensor in (noised, latent_image, noisy_per_value(denoise_mask, shapes))
        ]
        return comfy.utils.pack_latents(
            [torch.where(noisy, some, clean) for some, clean, noisy in zip(*streams, strict=True)]
        )[0]

    def process_latent_in(self, latent):
        return self._change_depth(super().process_latent_in(latent), to_carried)

    def process_latent_out(self, latent):
        return super().process_latent_out(self._change_depth(latent, from_carried))

    def _change_depth(self, latent, change):
        """Apply `change` to the depth of a joint latent, nested or packed; an image latent is returned
        unchanged.
        """
        if latent.is_nested:
            image, depth, *others = latent.unbind()
            return comfy.nested_tensor.NestedTensor([image, change(depth, self.log2_alpha), *others])
        if self.latent_shapes is None or len(self.latent_shapes) != 2 or latent.ndim != 3:
            return latent
        image, depth = comfy.utils.unpack_latents(latent, self.latent_shapes)
        return comfy.utils.pack_latents([image, change(depth, self.log2_alpha)])[0]


class NotAUnet(dict):
    """The sizes of a network under core's names; a node that reads a UNet's own is refused in a sentence."""

    def __missing__(self, key):
        raise ValueError(
            f"Expected a UNet (SD 1.5, SDXL) for a node that reads its {key}, as FreeU and FreeU_V2 do, got "
            "a joint model, which is a transformer. Remove that node from the model's line."
        )


class JointConfig(comfy.supported_models_base.BASE):
    """What core reads of a model before building it."""

    unet_extra_config = {}
    supported_inference_dtypes = [torch.bfloat16, torch.float32]  # float16 overflows in the released network

    def __init__(self, network: ModalityForcingConfig, trained_size: int | None = None):
        sizes = {
            "depth": network.num_double_blocks,
            "depth_single_blocks": network.num_single_blocks,
            "hidden_size": network.hidden_size,
        }
        super().__init__({"config": network, **sizes})  # sizes under core's names, for its table of LoRA keys
        self.unet_config = NotAUnet(self.unet_config)
        self.network, self.trained_size = network, trained_size
        self.latent_format = latent_format(network)
        self.sampling_settings = {"shift": network.shift_mu}
        # bytes per value of the packed latent; of the order of core's own packed models, scaled with the
        # width
        self.memory_usage_factor = 0.1 * network.hidden_size / 4096

    def get_model(self, state_dict, prefix="", device=None):
        return JointModel(self, device=device)


def latent_format(network: ModalityForcingConfig) -> comfy.latent_formats.LatentFormat:
    """FLUX.2's latent where the network uses it, else a plain one of the same stride."""
    if network.in_channels == comfy.latent_formats.Flux2.latent_channels:
        return with_pair_preview(comfy.latent_formats.Flux2())
    plain = comfy.latent_formats.LatentFormat()
    plain.latent_channels, plain.spacial_downscale_ratio = network.in_channels, network.depth_patch
    return with_pair_preview(plain)


def check_latent(shapes, network: ModalityForcingConfig) -> None:
    """Refuse all but an image latent (b, c, h, w) with a depth (b, 1, p h, p w), in one sentence."""
    remedy = "Create one with the node Empty Joint Latent, with this model connected to it"
    if shapes is None or len(shapes) != 2:
        streams = (
            "no latent"
            if not shapes
            else f"a plain latent {tuple(shapes[0])}"
            if len(shapes) == 1
            else f"{len(shapes)} streams"
        )
        raise ValueError(
            f"Expected a joint latent, an image and its depth together, got {streams}. {remedy}."
        )
    image, depth = (tuple(shape) for shape in shapes)
    channels, patch = network.in_channels, network.depth_patch
    if len(image) != 4 or image[1] != channels:
        raise ValueError(
            f"Expected an image latent (batch, {channels}, h, w) of {channels} channels, got an image latent "
            f"{image}. {remedy}."
        )
    expected = (image[0], 1, image[2] * patch, image[3] * patch)
    if depth != expected:
        raise ValueError(
            f"Expected a depth {expected} beside the image latent {image}, got a depth {depth}. {remedy}."
        )


def check_context(context: Tensor | None, network: ModalityForcingConfig) -> None:
    """Refuse the prompt of another model's text encoder."""
    width = None if context is None else context.shape[-1]
    if width != network.context_in_dim:
        raise ValueError(
            f"Expected a prompt of width {network.context_in_dim}, got a prompt of width {width}. Encode it "
            "with the CLIP of Load Modality Forcing for the tiny model, with the Qwen3 encoder of its FLUX.2 "
            "base (Load CLIP, type flux2) for a file."
        )


def noisy_streams(mask: Tensor, shapes) -> Tensor:
    """(b, streams): 1 where any part of a stream is sampled, 0 where the stream is fixed."""
    return torch.stack(
        [(part.flatten(1).amax(1) > 0).float() for part in comfy.utils.unpack_latents(mask, shapes)], dim=1
    )


def noisy_per_value(mask: Tensor, shapes) -> Tensor:
    """`noisy_streams` for every value of the packed latent: bool, (b, 1, n)."""
    lengths = torch.tensor([math.prod(shape[1:]) for shape in shapes], device=mask.device)
    return noisy_streams(mask, shapes).repeat_interleave(lengths, dim=1).unsqueeze(1) > 0


def keep_given(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
    """An OUTER_SAMPLE wrapper: values whose mask is 0 are returned exactly, where core's blend would round
    them.

    NaN means missing: the network gets this run's own noise there, as in training, and a NaN of the input is
    NaN in the result. Unsuitable inputs are refused before any weight is moved; a run that is too large for
    the memory says what to change.
    """
    check_sampler(sampler)
    check_sigmas(sigmas)
    shapes = kwargs.get("latent_shapes") or [latent_image.shape]
    check_attachments(executor.class_obj, denoise_mask, shapes)
    whole = torch.where(latent_image.isnan(), noise.to(latent_image), latent_image)
    with explain_sampling(executor.class_obj.model_patcher, shapes):
        samples = executor(noise, whole, sampler, sigmas, denoise_mask, *args, **kwargs)
    if denoise_mask is None:
        return samples
    return torch.where(denoise_mask.to(samples.device) == 0, latent_image.to(samples), samples)


def check_attachments(guider, denoise_mask: Tensor | None, shapes) -> None:
    """Refuse what other nodes attached to the prompts or the model and the network would ignore."""
    check_conditioning(guider.conds)
    check_unconditional(guider)
    given = (
        denoise_mask is not None
        and len(shapes) == 2
        and not bool(noisy_streams(denoise_mask, shapes)[:, 0].any())
    )
    check_options(guider.model_options, image_given=given)
    check_loras(guider.model_patcher, guider.model_patcher.model.model_config.network)


def network_config(model: comfy.model_patcher.ModelPatcher, purpose: str) -> ModalityForcingConfig:
    """The network behind a MODEL; other models are refused, with what only a joint model does."""
    if not hasattr(model, "model"):
        raise ValueError(f"Expected a MODEL, got {describe(model)}. Connect that of Load Modality Forcing.")
    if not isinstance(model.model, JointModel):
        kind = type(model.model).__name__
        raise ValueError(
            f"Expected a joint model, which alone {purpose}, got a {kind} model. "
            "Load one with Load Modality Forcing."
        )
    return model.model.model_config.network


def with_order(
    model: comfy.model_patcher.ModelPatcher, log2_alpha: float
) -> comfy.model_patcher.ModelPatcher:
    """A clone whose depth is at odds 2^log2_alpha times the image's; other models are refused."""
    network_config(model, "has an order")
    ordered = model.clone()
    ordered.add_object_patch("log2_alpha", float(log2_alpha))
    return ordered
