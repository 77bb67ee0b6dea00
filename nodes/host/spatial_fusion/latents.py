"""Which MODELs an adapter fits, and F in the form of what their samplers step."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.latent_formats
import comfy.utils
import torch
from torch import Tensor

from ....models.spatial_fusion.config import DepthAdapterConfig
from ..shared.last_resort import describe

NO_PICTURE = ("ACEAudio",)  # formats of two dimensions, neither of which is a picture's


def check_latent_format(model, config: DepthAdapterConfig) -> None:
    """ValueError unless the MODEL denoises latents of the adapter's format."""
    if not hasattr(model, "get_model_object"):
        raise ValueError(f"Expected a MODEL, got {describe(model)}. Connect a loader of diffusion models.")
    latent = model.get_model_object("latent_format")
    name, kind = type(latent).__name__, type(model.model).__name__
    if latent.latent_dimensions < 2 or name in NO_PICTURE:
        raise ValueError(
            f"Expected a MODEL whose latent is an image or a video, got {kind} with {name} latents. Connect "
            "a model of images."
        )
    found = (name, latent.latent_channels, latent.spacial_downscale_ratio)
    if found != (config.latent_format, config.latent_channels, config.stride):
        raise ValueError(
            f"Expected a MODEL with {config.described}, as the adapter, got {kind} with {name} latents of "
            f"{latent.latent_channels} channels and stride {latent.spacial_downscale_ratio}. Load the "
            "adapter of this model, or the adapter's model."
        )


def picture_shape(x: Tensor, shapes: Sequence[Sequence[int]] | None) -> tuple[int, ...]:
    """The shape of the stream that gets F: a plain latent's own, the first of a nested one."""
    return tuple(x.shape) if shapes is None or len(shapes) < 2 else (len(x), *shapes[0][1:])


def fit_addend(addend: Tensor, x: Tensor, shapes: Sequence[Sequence[int]] | None) -> Tensor:
    """F (n, c, h, w) in the shape of x, but for its batch: every frame of a video, 0 in further streams."""
    shape = picture_shape(x, shapes)
    while addend.ndim < len(shape):
        addend = addend.unsqueeze(2)
    addend = addend.expand(len(addend), *shape[1:])
    if len(shape) == x.ndim and tuple(x.shape[1:]) == shape[1:]:
        return addend.to(x)
    others = [torch.zeros((len(addend), *other[1:])) for other in shapes[1:]]
    return comfy.utils.pack_latents([addend.cpu(), *others])[0].to(x)
