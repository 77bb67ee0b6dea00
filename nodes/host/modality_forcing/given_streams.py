"""Joint latents with a fixed image, a fixed depth, or fixed regions of either. The rest is sampled.

A noise mask per stream is 0 where the stream is fixed and 1 where it is sampled. A stream that is fixed
everywhere has timestep 0 for the network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import comfy.model_management
import comfy.nested_tensor
import torch
import torch.nn.functional as F
from torch import Tensor

from ....models.core.geometry.view import View
from ....models.core.padding import pad_to
from ....models.core.pictures import Pictures
from ....models.modality_forcing.config import ModalityForcingConfig
from ....models.modality_forcing.inputs import (
    OWN_SIZE,
    SAMPLING_SIZES,
    TRAINED_SIZE,
    Notes,
    Size,
    encode_view,
    explain_resize,
    match_counts,
    pad_size,
    read_given_depth,
    read_given_image,
    scale_to_trained,
)
from ..shared.last_resort import describe
from ..shared.nested_latents import GUIDE, SIZE, JointLatent
from .joint_latent import REFUSAL, SKY, check_vae, explain_size, split_joint_latent
from .joint_model import network_config

KEEP_SIZE = (None, None)
USE_TRAINED_SIZE = f"Set sample_at to {TRAINED_SIZE}."
SMALLER_INPUTS = "Scale the inputs to that size."


class GivenLatent(NamedTuple):
    """A joint latent with a fixed stream, or fixed regions of one."""

    latent: dict
    notes: Notes
    transparent: Tensor | None = None  # (b, h, w), core's MASK of alpha: 1 = transparent, 0 without alpha


class Stream(NamedTuple):
    """One stream of a joint latent."""

    values: Tensor  # (b, c, h, w)
    noisy: Tensor  # (b, 1, h, w) in [0, 1]: 0 fixed, 1 sampled


def image_to_depth_latent(model, vae, image: Tensor, sample_at: str = OWN_SIZE) -> GivenLatent:
    """The image fixed, its depth sampled. At the trained size, decoding brings the depth back to the image's
    size.
    """
    config, pictures = network_config(model, "takes a joint latent"), read_given_image(image, KEEP_SIZE)
    given, scaled = pictures.rgb, {}
    size = find_sampling_size(model, given.shape[1:3], sample_at)
    if size != tuple(given.shape[1:3]):
        scaled = {GUIDE: given.to(comfy.model_management.intermediate_device())}
        given = read_given_image(given, size).rgb
    padded = pad_size(size, config.depth_patch)[0]
    stream = give_image(given, torch.zeros(1, 1, *padded), vae, config, padded)
    latent = join_streams(stream, empty_depth(padded), config, size) | scaled
    notes = (explain_guide(pictures.rgb.shape[1:3], size),) if scaled else ()
    notes += explain_size(model, size, USE_TRAINED_SIZE)
    return GivenLatent(latent, pictures.notes + notes, transparent_parts(pictures))


def find_sampling_size(model, size: Size, sample_at: str) -> Size:
    """The (height, width) at which an input of `size` is sampled; ValueError for another choice."""
    if sample_at not in SAMPLING_SIZES:
        raise ValueError(
            f"Expected sample_at as one of {', '.join(SAMPLING_SIZES)}, got {sample_at!r}. Choose one of "
            "them."
        )
    trained = model.model.model_config.trained_size
    return tuple(size) if sample_at == OWN_SIZE else scale_to_trained(tuple(size), trained)


def explain_guide(own: Size, size: Size) -> str:
    return (
        f"Sampled at {size[0]} x {size[1]} (height x width), the trained size; Decode Joint Latent brings "
        f"the depth back to {own[0]} x {own[1]}, guided by the image."
    )


def depth_to_image_latent(model, view: View, sample_at: str = OWN_SIZE) -> GivenLatent:
    """The depth fixed, the image sampled. Missing depth is NaN, which sampling replaces by noise."""
    config = network_config(model, "takes a joint latent")
    view, depth_notes = read_given_depth(view, KEEP_SIZE)
    size = find_sampling_size(model, view.depth.shape[1:], sample_at)
    if size != tuple(view.depth.shape[1:]):
        depth_notes += (explain_resize("depth", view.depth.shape[1:], size),)
        view = read_given_depth(view, size)[0]
    padded, size_notes = pad_size(size, config.depth_patch)[0], explain_size(model, size, USE_TRAINED_SIZE)
    net, known = encode_view(view, padded, infinite_sky=config.infinite_sky)
    given = Stream(torch.where(known, net, math.nan), torch.zeros_like(net))
    return GivenLatent(
        join_streams(empty_image(padded, config), given, config, size), depth_notes + size_notes
    )


def refine_depth_latent(latent: dict) -> dict:
    """The image of a joint latent fixed, its depth sampled; the masks of the first run are dropped."""
    image, depth = split_joint_latent(latent)
    masks = (torch.zeros_like(image[:, :1]), torch.ones_like(depth))
    refined = latent | {"noise_mask": comfy.nested_tensor.NestedTensor(masks)}
    return JointLatent(refined, REFUSAL)


def masked_joint_latent(
    model,
    vae=None,
    image: Tensor | None = None,
    image_mask: Tensor | None = None,
    *,
    view: View | None = None,
    depth_mask=None,
) -> GivenLatent:
    """Unmasked input values are kept; masked ones, missing depth and absent streams are sampled."""
    config = network_config(model, "takes a joint latent")
    check_parts(vae, image, image_mask, view, depth_mask)
    pictures = None if image is None else read_given_image(image, KEEP_SIZE)
    view, depth_notes = (None, ()) if view is None else read_given_depth(view, KEEP_SIZE)
    size = find_common_size(pictures, view)
    padded, size_notes = pad_size(size, config.depth_patch)[0], explain_size(model, size, SMALLER_INPUTS)
    image_mask, image_mask_notes = spread_mask(image_mask, "image_mask", size, padded)
    depth_mask, depth_mask_notes = spread_mask(depth_mask, "depth_mask", size, padded)
    first, second = empty_image(padded, config), empty_depth(padded)
    if pictures is not None:
        first = give_image(pictures.rgb, image_mask, vae, config, padded)
    if view is not None:
        second = give_depth(view, depth_mask, config, padded)
    if not bool(first.noisy.any()) and not bool(second.noisy.any()):
        raise ValueError(
            "Expected something to sample, got an image and a depth without masks. Mask a region of one, or "
            "disconnect one."
        )
    transparent = torch.zeros(1, *size) if pictures is None else transparent_parts(pictures)
    image_notes = () if pictures is None else pictures.notes
    notes = image_notes + depth_notes + size_notes + image_mask_notes + depth_mask_notes
    return GivenLatent(join_streams(first, second, config, size), notes, transparent)


def transparent_parts(pictures: Pictures) -> Tensor:
    """The alpha of images as a core MASK: (b, h, w), 1 where transparent."""
    return torch.zeros(pictures.rgb.shape[:3]) if pictures.alpha is None else 1 - pictures.alpha


def check_parts(vae, image, image_mask, view, depth_mask) -> None:
    """Refuse inputs that would have no effect, or that need another input."""
    if image is None and view is None:
        raise ValueError(
            "Expected an image or a view, got neither. Connect one, or use Empty Joint Latent to sample both."
        )
    if image is not None and vae is None:
        raise ValueError(
            "Expected a VAE to encode the image, got none. Connect the VAE of Load Modality Forcing, or "
            "flux2-vae for a file."
        )
    for name, mask, owner, given in (
        ("image_mask", image_mask, "image", image),
        ("depth_mask", depth_mask, "view", view),
    ):
        if mask is not None and given is None:
            raise ValueError(
                f"Expected the {owner} that {name} masks, got the mask alone. Connect the {owner}, or "
                "disconnect the mask."
            )


def find_common_size(pictures: Pictures | None, view: View | None) -> Size:
    """Height and width of the fixed streams, which must agree."""
    sizes = [tuple(pictures.rgb.shape[1:3])] if pictures is not None else []
    sizes += [tuple(view.depth.shape[1:])] if view is not None else []
    if len(set(sizes)) > 1:
        (a, b), (c, d) = sizes
        raise ValueError(
            "Expected an image and a view of one size (height x width), got "
            f"an image of {a} x {b} and a view of {c} x {d}. Scale the image to the view's size."
        )
    return sizes[0]


def give_image(rgb: Tensor, noisy: Tensor, vae, config: ModalityForcingConfig, padded: Size) -> Stream:
    """Images (b, h, w, 3) as a latent, edge-padded; the mask (b, 1, H, W) is max-pooled to latent cells."""
    rows, columns = (side // config.depth_patch for side in padded)
    check_vae(vae, torch.empty(1, config.in_channels, rows, columns), config.depth_patch)
    values = vae.encode(pad_to(rgb.movedim(-1, 1), padded).movedim(1, -1)).float()
    return Stream(values, F.max_pool2d(noisy, config.depth_patch))


def give_depth(view: View, noisy: Tensor, config: ModalityForcingConfig, padded: Size) -> Stream:
    """A view in network space; its invalid pixels are sampled, whatever the mask (b, 1, H, W)."""
    net, known = encode_view(view, padded, infinite_sky=config.infinite_sky)
    return Stream(net, torch.maximum(noisy, (~known).float()))


def spread_mask(mask: Tensor | None, name: str, size: Size, padded: Size) -> tuple[Tensor, Notes]:
    """A MASK (b, h, w) or (h, w), resized and padded to (b, 1, H, W); None is all 0."""
    if mask is None:
        return torch.zeros(1, 1, *padded), ()
    if (
        not isinstance(mask, Tensor)
        or mask.dim() < 2
        or not mask.numel()
        or mask.is_complex()
        or not bool(torch.isfinite(mask).all())
    ):
        got = f"{describe(mask)}, empty or with NaN" if isinstance(mask, Tensor) else describe(mask)
        raise ValueError(
            f"Expected a MASK (batch, height, width) of values from 0 to 1 at {name}, got {got}. Connect a "
            "mask."
        )
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu().clamp(0, 1)
    own = tuple(mask.shape[-2:])
    if own == tuple(size):
        return pad_to(mask, padded), ()
    note = f"The {name} of {own[0]} x {own[1]} was stretched to {size[0]} x {size[1]} (height x width)."
    return pad_to(F.interpolate(mask, tuple(size), mode="nearest-exact"), padded), (note,)


def empty_image(padded: Size, config: ModalityForcingConfig) -> Stream:
    rows, columns = (side // config.depth_patch for side in padded)
    return Stream(torch.zeros(1, config.in_channels, rows, columns), torch.ones(1, 1, rows, columns))


def empty_depth(padded: Size) -> Stream:
    return Stream(torch.zeros(1, 1, *padded), torch.ones(1, 1, *padded))


def join_streams(image: Stream, depth: Stream, config: ModalityForcingConfig, size: Size) -> dict:
    """The LATENT of both; a batch of 1 is repeated to match the other."""
    counts = {
        "images": image.values,
        "image masks": image.noisy,
        "depth maps": depth.values,
        "depth masks": depth.noisy,
    }
    batch = match_counts({name: len(part) for name, part in counts.items()})
    device = comfy.model_management.intermediate_device()
    streams = [
        tuple(part.to(device).expand(batch, -1, -1, -1).contiguous() for part in stream)
        for stream in (image, depth)
    ]
    values, noisy = zip(*streams, strict=True)
    nested = comfy.nested_tensor.NestedTensor
    latent = {
        "samples": nested(values),
        "noise_mask": nested(noisy),
        SIZE: tuple(size),
        SKY: config.infinite_sky,
    }
    return JointLatent(latent, REFUSAL)
