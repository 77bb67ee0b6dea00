"""Image and depth side by side while they are sampled, on the node that samples them.

Core previews the first stream of a nested latent, and lets a latent format define how that is reshaped for it
(`latent_rgb_factors_reshape`). Ours puts the depth beside the image there, as last stored by `note_depth`, a
wrapper around the run. So core sends one preview per step, by its own settings of method and size, and both
of its frontends show it.
"""

from __future__ import annotations

import copy

import comfy.latent_formats
import comfy.utils
import latent_preview
import torch
import torch.nn.functional as F
from torch import Tensor

from ....models.core.diffusion.carry import from_carried
from ....models.core.visualize.depth_colors import map_colors
from ....models.modality_forcing.depth_code import SKY_CODE

LONGEST = 256  # pixels of a side: enough to recognize, and negligible beside a sampling step


class PairPreview:
    """Image latent (b, c, h, w), from core -> image and depth of the first, (1, 3, H, W) in [-1, 1]."""

    def __init__(self, image_format: comfy.latent_formats.LatentFormat):
        self.image_format = image_format
        self.start()

    def start(self) -> None:
        """Discard the last run's depth and the previewer chosen by its settings."""
        self.depth: Tensor | None = None
        self.previewer: latent_preview.LatentPreviewer | None = None

    def __call__(self, latent: Tensor) -> Tensor:
        shown = [picture for picture in (self.show_image(latent), self.show_depth()) if picture is not None]
        if not shown:
            return latent.new_zeros(1, 3, *latent.shape[-2:])
        size = shown[-1].shape[-2:]
        sized = [
            F.interpolate(picture, size, mode="bilinear", antialias=True).clamp(0, 1) for picture in shown
        ]
        return torch.cat(sized, dim=-1) * 2 - 1

    def show_image(self, latent: Tensor) -> Tensor | None:
        """(1, 3, h, w) in [0, 1], by ComfyUI's preview method; None where that cannot show the latent."""
        self.previewer = self.previewer or latent_preview.get_previewer(latent.device, self.image_format)
        if self.previewer is None:
            return None
        picture = self.previewer.decode_latent_to_preview(latent[:1])
        values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(
            1, picture.height, picture.width, 3
        )
        return values.movedim(-1, 1).float() / 255

    def show_depth(self) -> Tensor | None:
        """(1, 3, h, w) in [0, 1]: near is bright. One scale for all steps, so that nothing flickers."""
        if self.depth is None:
            return None
        net = self.depth[:1].float().nan_to_num().cpu()
        scale = min(1.0, LONGEST / max(net.shape[-2:]))
        if scale < 1:
            net = F.interpolate(net, scale_factor=scale, mode="area")
        return map_colors(1 - net[:, 0] / SKY_CODE).movedim(-1, 1)


def with_pair_preview(image_format: comfy.latent_formats.LatentFormat) -> comfy.latent_formats.LatentFormat:
    """The same format for a joint model. TAESD decodes one stream, so it gets the image only."""
    joint = copy.copy(image_format)
    joint.latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    joint.latent_rgb_factors_bias = joint.taesd_decoder_name = None
    joint.latent_rgb_factors_reshape = PairPreview(image_format)
    return joint


def set_image_colors(model, factors: Tensor, bias: Tensor) -> None:
    """Set the linear map from latent to color, factors (c, 3) and bias (3,), where core does not know it."""
    image_format = model.model.latent_format.latent_rgb_factors_reshape.image_format
    image_format.latent_rgb_factors, image_format.latent_rgb_factors_bias = factors.tolist(), bias.tolist()


def note_depth(
    executor,
    noise,
    latent_image,
    sampler,
    sigmas,
    denoise_mask=None,
    callback=None,
    *args,
    latent_shapes=None,
    **kwargs,
):
    """An OUTER_SAMPLE wrapper: keeps the depth of every prediction for the preview that core makes of it."""
    model = executor.class_obj.model_patcher
    preview = model.model.latent_format.latent_rgb_factors_reshape
    log2_alpha = model.get_model_object("log2_alpha")

    def noting(step, x0, x, total_steps):
        preview.depth = from_carried(comfy.utils.unpack_latents(x0, latent_shapes)[1], log2_alpha)
        callback(step, x0, x, total_steps)

    preview.start()
    try:
        watched = None if callback is None else noting
        return executor(
            noise,
            latent_image,
            sampler,
            sigmas,
            denoise_mask,
            watched,
            *args,
            latent_shapes=latent_shapes,
            **kwargs,
        )
    finally:
        preview.start()
