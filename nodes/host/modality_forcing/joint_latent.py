"""The nested latent of an image and its depth: created empty, split, decoded."""

from __future__ import annotations

import comfy.model_management
import comfy.nested_tensor
import torch
from torch import Tensor

from ....models.core.geometry.arrays import OVERSHOOT, as_image
from ....models.core.geometry.upscale import upscale_view
from ....models.core.geometry.view import View
from ....models.modality_forcing.depth_code import net_to_depth
from ....models.modality_forcing.inputs import Notes, Size, explain_trained_size, pad_size
from ..shared.last_resort import describe
from ..shared.nested_latents import GUIDE, SIZE, JointLatent, read_samples
from ..shared.progress import each_picture
from .joint_model import network_config

SKY = "spatialweave_infinite_sky"  # whether the model predicts sky as infinite depth
REFUSAL = (
    "Expected a plain latent, got a joint one of an image and its depth. Split it with Split Joint Latent "
    "first; Save Joint Latent saves it whole."
)


def empty_joint_latent(model, width: int, height: int, batch_size: int) -> dict:
    """A LATENT of zeros: image (b, c, h, w) and depth (b, 1, H, W), padded to patches; decoding crops."""
    config = network_config(model, "takes a joint latent")
    rows, columns = -(-height // config.depth_patch), -(-width // config.depth_patch)
    device = comfy.model_management.intermediate_device()
    image = torch.zeros(batch_size, config.in_channels, rows, columns, device=device)
    depth = torch.zeros(batch_size, 1, rows * config.depth_patch, columns * config.depth_patch, device=device)
    latent = {
        "samples": comfy.nested_tensor.NestedTensor((image, depth)),
        SIZE: (height, width),
        SKY: config.infinite_sky,
    }
    return JointLatent(latent, REFUSAL)


def explain_size(model, size: Size, remedy: str) -> Notes:
    """Notes on a (height, width) that is not a multiple of the patch, or far from what the model was trained
    at.
    """
    _, notes = pad_size(size, network_config(model, "takes a joint latent").depth_patch)
    return notes + explain_trained_size(size, model.model.model_config.trained_size, remedy)


def split_joint_latent(latent: dict) -> tuple[Tensor, Tensor]:
    """Image latent (b, c, h, w) and depth (b, 1, H, W), network space, of a joint LATENT, or ValueError."""
    samples = read_samples(latent, "samples")
    remedy = "A joint latent comes from Empty Joint Latent, through a KSampler with a joint model"
    if not getattr(samples, "is_nested", False):
        raise ValueError(
            f"Expected a joint latent, got a plain latent {tuple(samples.shape)} without a depth. {remedy}."
        )
    streams = samples.unbind()
    shapes = " and ".join(str(tuple(stream.shape)) for stream in streams)
    if len(streams) != 2 or streams[0].ndim != 4 or streams[1].ndim != 4 or streams[1].shape[1] != 1:
        expected = "an image (batch, channels, h, w) and a depth (batch, 1, H, W)"
        raise ValueError(f"Expected {expected}, got a nested latent of {shapes}. {remedy}.")
    image, depth = streams
    if image.shape[0] != depth.shape[0]:
        raise ValueError(
            "Expected as many images as depth maps in one latent, got "
            f"{image.shape[0]} images and {depth.shape[0]} depth maps. Give equally many."
        )
    if (
        depth.shape[-2] % image.shape[-2]
        or depth.shape[-2] * image.shape[-1] != depth.shape[-1] * image.shape[-2]
    ):
        raise ValueError(
            f"Expected a depth of the image's extent, got a nested latent of {shapes}, whose depth does not "
            f"cover the same image. {remedy}."
        )
    return image, depth


def decode_joint_latent(latent: dict, vae) -> tuple[Tensor, View]:
    """The image (b, h, w, 3) and its View, cropped to the size before padding.

    Of an image that was scaled to the trained size: the image itself, and the depth at its size, guided by
    it.
    """
    image, depth = split_joint_latent(latent)
    check_vae(vae, image, depth.shape[-2] // image.shape[-2])
    height, width = latent.get(SIZE, depth.shape[-2:])
    guide = latent.get(GUIDE)
    pictures = vae.decode(image)[:, :height, :width, :3] if guide is None else guide
    depth = net_to_depth(depth.float(), infinite_sky=latent.get(SKY, False)).to(pictures.device)[
        ..., :height, :width
    ]
    if guide is not None:
        guide = guide.expand(len(depth), -1, -1, -1)
        return guide, upscale_view(View.from_depth(depth, units="relative"), guide, each=each_picture)
    return pictures, View.from_depth(depth, units="relative", image=as_image(pictures, overshoot=OVERSHOOT))


def check_vae(vae, image: Tensor, stride: int) -> None:
    """Refuse a VAE of another latent space; core would fail inside a convolution, or decode to noise."""
    if not hasattr(vae, "spacial_compression_decode"):
        raise ValueError(
            f"Expected a VAE, got {describe(vae)}. Connect the VAE of Load Modality Forcing, or of Load VAE."
        )
    channels, step = getattr(vae, "latent_channels", None), vae.spacial_compression_decode()
    if (channels, step) != (image.shape[1], stride):
        raise ValueError(
            f"Expected a VAE with {image.shape[1]} channels at 1/{stride} for this latent, got one with "
            f"{channels} at 1/{step}. Use the VAE of Load Modality Forcing for the tiny model, flux2-vae "
            "for the models on FLUX.2."
        )
