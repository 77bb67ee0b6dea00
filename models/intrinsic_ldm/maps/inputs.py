"""Maps and pictures as users wire them, made into what the intrinsic VAE takes; and what was decoded, cut back to the size asked for.

Alpha is split off, broken pixels read MISSING, odd sizes are padded: each is told in one sentence.
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
from .codec import encode_pictures

Size = tuple[int, int]  # height, width


class Given(NamedTuple):
    """What came of the maps that were wired."""

    stacked: Tensor  # b 8 h w in [-1, 1]
    coded: str  # which maps there are and which are missing
    notes: list[str]  # what was done to the inputs, a sentence each
    transparent: Tensor  # b h w, as core's MASK: 1 where a given picture is transparent, 0 without an alpha


class Beside(NamedTuple):
    """The picture that goes with decoded maps."""

    picture: Tensor | None  # b h w 3
    transparent: Tensor  # b h w


def read_maps(
    *, depth: View | None = None, normals: Tensor | None = None, segmentation: Tensor | None = None, line: Tensor | None = None,
    style: NormalStyle = "opengl",
) -> Given:  # fmt: skip
    """As `encode_pictures`, of pictures with 1 to 4 channels and with pixels that are no numbers."""
    notes: list[str] = []
    alphas, unknown = [], None
    if depth is not None:
        count_depth(depth, notes)
    if normals is not None:
        check_normal_map(normals)
        normals, alpha = read_picture(normals, "normals", notes)
        alphas.append(alpha)
        nowhere = (normals_from_image(normals, directx=style == "directx") == 0).all(dim=1)
        count_missing(nowhere, "normals", "point nowhere (black, mid grey, NaN or infinite)", notes)
    if segmentation is not None:
        if segmentation.ndim < 2 or not segmentation.numel() or segmentation.is_complex():
            got = f"{tuple(segmentation.shape)} {str(segmentation.dtype).removeprefix('torch.')}"
            raise ValueError(f"Expected masks (batch, height, width) at segmentation, got {got}. Wire a MASK with one mask a segment.")
        unknown = (~segmentation.reshape(-1, *segmentation.shape[-2:]).isfinite()).any(dim=0, keepdim=True)
        count_missing(unknown, "segmentation", "are NaN or infinite", notes)
    if line is not None:
        line, alpha = read_picture(as_colours(line), "line", notes)
        alphas.append(alpha)
        count_missing(line.isnan().all(dim=-1), "line", "are NaN or infinite", notes)
    stacked, coded = encode_pictures(depth=depth, normals=normals, segmentation=segmentation, line=line, style=style)
    if unknown is not None:
        part = stacked[:, map_slices()["segmentation"]]
        part.copy_(torch.where(unknown.cpu(), MISSING, part))
    transparent = torch.zeros(1, *stacked.shape[2:])
    for alpha in alphas:
        transparent = transparent if alpha is None else torch.maximum(transparent, 1 - alpha.cpu())
    return Given(stacked, coded, notes, transparent)


def count_depth(view: View, notes: list[str]) -> None:
    """Pixels without a depth; sky has one, the farthest."""
    holes = ~view.mask if view.sky is None else ~view.mask & ~view.sky
    count, pixels = int(holes.sum()), holes.numel()
    if count:
        notes.append(f"{count} of {pixels} pixels of depth ({count / pixels:.1%}) are invalid and are coded as missing.")


def count_missing(which: Tensor, name: str, fault: str, notes: list[str]) -> None:
    """Say how many pixels (b h w) of a map are missing; refuse a picture that has no other."""
    for index, picture in enumerate(which):
        if bool(picture.all()):
            raise ValueError(f"All {picture.numel()} pixels of picture {index} of {name} {fault}: check its source, or take {name} off.")
    count, pixels = int(which.sum()), which.numel()
    if count:
        notes.append(f"{count} of {pixels} pixels of {name} ({count / pixels:.1%}) {fault} and are coded as missing.")


def check_normal_map(image: Tensor) -> None:
    if image.dim() != 4 or image.shape[-1] < 3:
        raise ValueError(
            f"A picture {tuple(image.shape)} arrived at normals, wanted the colours of a normal map, (batch, height, width, 3): Normals "
            "from Depth makes one."
        )


def as_colours(line: Tensor) -> Tensor:
    """A MASK (b h w, or h w) or an IMAGE as b h w c; one channel is as good as three, so nothing need be said of it."""
    line = line.reshape(-1, *line.shape[-2:], 1) if line.dim() < 4 else line
    return line.expand(*line.shape[:3], 3) if line.shape[-1] == 1 else line


def read_picture(image: Tensor, name: str, notes: list[str]) -> tuple[Tensor, Tensor | None]:
    """(colours b h w 3, alpha b h w or None) of any picture. A pixel of which a colour is no number is NaN."""
    broken = ~image[..., :3].isfinite().all(dim=-1, keepdim=True)
    pictures = read_pictures(torch.where(broken, torch.zeros_like(image), image))
    notes.extend(f"{name}: {note[0].lower()}{note[1:]}" for note in pictures.notes)
    return pictures.rgb.masked_fill(broken, torch.nan), pictures.alpha


def pad_maps(stacked: Tensor, stride: int, notes: list[str]) -> Tensor:
    """(b, 8, h, w) up to whole latents by repeating the last row and column, which changes none of the codes."""
    size = tuple(stacked.shape[2:])
    padded = round_up(size, stride)
    if padded == size:
        return stacked
    notes.append(
        f"The size {say(size)} (height x width) is not a multiple of {stride}: the maps were padded to {say(padded)}, edges repeated, and "
        f"Decode Intrinsics cuts them back; the image's latent must have {say(padded)} as well."
    )
    return pad_to(stacked, padded)


def cut_maps(stacked: Tensor, size: Size | None, stride: int, notes: list[str]) -> Tensor:
    """Decoded maps (b, 8, H, W) at the size they were padded from; a latent that was scaled meanwhile is left whole."""
    padded = tuple(stacked.shape[2:])
    if size is None or padded == tuple(size) or padded != round_up(size, stride):
        return stacked
    notes.append(
        f"The maps were cut back from {say(padded)} to {say(size)} (height x width), as they were given; Crop Image at x 0, y 0 cuts "
        "the image alike."
    )
    return crop_to(stacked, size)


def read_beside(picture: Tensor | None, size: Size, padded: Size, notes: list[str]) -> Beside:
    """The picture wired beside maps of `size`; one of the `padded` size is cut as they were."""
    if picture is None:
        return Beside(None, torch.zeros(1, *size))
    pictures = read_pictures(picture)
    notes.extend(pictures.notes)
    rgb, alpha = pictures.rgb, pictures.alpha
    transparent = torch.zeros(rgb.shape[:3]) if alpha is None else 1 - alpha.cpu()
    if tuple(rgb.shape[1:3]) == tuple(padded):
        rgb, transparent = (part[:, : size[0], : size[1]] for part in (rgb, transparent))
    return Beside(rgb, transparent)


def say(size: Sequence[int]) -> str:
    return "{} x {}".format(*size)
