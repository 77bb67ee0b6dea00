"""A node's maps and images to the intrinsic VAE's input; decoded maps cropped to the requested size.

Alpha is split off, non-finite pixels become MISSING, sizes are padded to a multiple of the stride: the
returned notes have one sentence per change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.geometry.normals import NormalStyle
from ...core.geometry.view import View
from ...core.padding import crop_to, pad_to, round_up
from ...core.pictures import read_pictures
from ..vae import MISSING, map_slices
from .channels import normals_from_image
from .codec import check_normal_map, maps_to_channels

Size = tuple[int, int]  # (height, width)


Notes = tuple[str, ...]  # one sentence per change of an input


class MapInputs(NamedTuple):
    """A node's maps, encoded as channels."""

    stacked: Tensor  # (b, 8, h, w) in [-1, 1]
    coded: str  # which maps are present and which are missing
    notes: Notes
    transparent: Tensor  # (b, h, w), as ComfyUI's MASK: 1 where an input is transparent, 0 without an alpha


class ResizedMaps(NamedTuple):
    """Maps padded or cropped."""

    stacked: Tensor  # (b, 8, h, w)
    notes: Notes


class MatchingImage(NamedTuple):
    """The image of decoded maps."""

    image: Tensor | None  # (b, h, w, 3)
    transparent: Tensor  # (b, h, w)
    notes: Notes


class ImageInput(NamedTuple):
    """An input image as colors and alpha."""

    rgb: Tensor  # (b, h, w, 3); a pixel with a non-finite channel is NaN
    alpha: Tensor | None  # (b, h, w)
    notes: Notes


def read_maps(
    *, depth: View | None = None, normals: Tensor | None = None, segmentation: Tensor | None = None,
    line: Tensor | None = None,
    style: NormalStyle = "opengl",
) -> MapInputs:  # fmt: skip
    """As `maps_to_channels`, for images with 1 to 4 channels and with NaN or infinite pixels."""
    alphas, unknown = [], None
    notes = () if depth is None else count_depth(depth)
    if normals is not None:
        check_normal_map(normals)
        normals, alpha, changes = split_alpha(normals, "normals")
        alphas.append(alpha)
        unknown_normals = (normals_from_image(normals, directx=style == "directx") == 0).all(dim=1)
        notes += changes + count_missing(
            unknown_normals, "normals", "have no direction (black, mid gray, NaN or infinite)"
        )
    if segmentation is not None:
        if segmentation.ndim < 2 or not segmentation.numel() or segmentation.is_complex():
            got = f"{tuple(segmentation.shape)} {str(segmentation.dtype).removeprefix('torch.')}"
            raise ValueError(
                f"Expected masks (n, h, w) at segmentation, got {got}. Connect a MASK with one mask per "
                "segment."
            )
        unknown = (~segmentation.reshape(-1, *segmentation.shape[-2:]).isfinite()).any(dim=0, keepdim=True)
        notes += count_missing(unknown, "segmentation", "are NaN or infinite")
    if line is not None:
        line, alpha, changes = split_alpha(as_colors(line), "line")
        alphas.append(alpha)
        notes += changes + count_missing(line.isnan().all(dim=-1), "line", "are NaN or infinite")
    stacked, coded = maps_to_channels(
        depth=depth, normals=normals, segmentation=segmentation, line=line, style=style
    )
    if unknown is not None:
        channels = stacked[:, map_slices()["segmentation"]]
        channels.copy_(torch.where(unknown.cpu(), MISSING, channels))
    transparent = torch.zeros(1, *stacked.shape[2:])
    for alpha in alphas:
        transparent = transparent if alpha is None else torch.maximum(transparent, 1 - alpha.cpu())
    return MapInputs(stacked, coded, notes, transparent)


def count_depth(view: View) -> Notes:
    """A note on pixels with unknown depth; sky is known (farthest)."""
    holes = ~view.mask if view.sky is None else ~view.mask & ~view.sky
    return note_missing(holes, "depth", "are invalid")


def count_missing(which: Tensor, name: str, fault: str) -> Notes:
    """A note on the missing pixels (b, h, w) of a map; ValueError for an image with no other pixels."""
    for index, image in enumerate(which):
        if bool(image.all()):
            raise ValueError(
                f"Expected known pixels in image {index} of {name}, got {image.numel()}, which all {fault}. "
                f"Check its source, or disconnect {name}."
            )
    return note_missing(which, name, fault)


def note_missing(which: Tensor, name: str, fault: str) -> Notes:
    """A sentence with the number of True pixels in (b, h, w); none if there are none."""
    count, pixels = int(which.sum()), which.numel()
    if not count:
        return ()
    share = f"{count} of {pixels} pixels of {name} ({count / pixels:.1%})"
    return (f"{share} {fault} and are encoded as missing.",)


def as_colors(line: Tensor) -> Tensor:
    """A MASK (b, h, w) or (h, w) or an IMAGE as (b, h, w, c); one channel is repeated without a note."""
    line = line.reshape(-1, *line.shape[-2:], 1) if line.dim() < 4 else line
    return line.expand(*line.shape[:3], 3) if line.shape[-1] == 1 else line


def split_alpha(image: Tensor, name: str) -> ImageInput:
    """Any image (b, h, w, c) with 1 to 4 channels; `name` is the input's, for the notes."""
    broken = ~image[..., :3].isfinite().all(dim=-1, keepdim=True)
    pictures = read_pictures(torch.where(broken, torch.zeros_like(image), image))
    notes = tuple(f"{name}: {note[0].lower()}{note[1:]}" for note in pictures.notes)
    return ImageInput(pictures.rgb.masked_fill(broken, torch.nan), pictures.alpha, notes)


def pad_maps(stacked: Tensor, stride: int) -> ResizedMaps:
    """(b, 8, h, w) padded to a multiple of `stride` by edge replication, which changes none of the codes."""
    size = tuple(stacked.shape[2:])
    padded = round_up(size, stride)
    if padded == size:
        return ResizedMaps(stacked, ())
    note = (
        f"The size {format_size(size)} (height x width) is not a multiple of {stride}: the maps were padded "
        f"to {format_size(padded)} by edge replication, and Decode Intrinsics crops them again; the image's "
        f"latent must be of {format_size(padded)} pixels as well."
    )
    return ResizedMaps(pad_to(stacked, padded), (note,))


def crop_maps(stacked: Tensor, size: Size | None, stride: int) -> ResizedMaps:
    """Decoded maps (b, 8, H, W) cropped to their size before padding; not if the latent was rescaled."""
    padded = tuple(stacked.shape[2:])
    if size is None or padded == tuple(size) or padded != round_up(size, stride):
        return ResizedMaps(stacked, ())
    note = (
        f"The maps were cropped from {format_size(padded)} to {format_size(size)} (height x width), their "
        "size before padding; Crop Image at x 0, y 0 crops the image in the same way."
    )
    return ResizedMaps(crop_to(stacked, size), (note,))


def read_matching_image(image: Tensor | None, size: Size, padded: Size) -> MatchingImage:
    """A node's image for maps of `size`; an image of the `padded` size is cropped to `size`."""
    if image is None:
        return MatchingImage(None, torch.zeros(1, *size), ())
    pictures = read_pictures(image)
    rgb, alpha = pictures.rgb, pictures.alpha
    transparent = torch.zeros(rgb.shape[:3]) if alpha is None else 1 - alpha.cpu()
    if tuple(rgb.shape[1:3]) == tuple(padded):
        rgb, transparent = (x[:, : size[0], : size[1]] for x in (rgb, transparent))
    return MatchingImage(rgb, transparent, tuple(pictures.notes))


def format_size(size: Sequence[int]) -> str:
    return "{} x {}".format(*size)
