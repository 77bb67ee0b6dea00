"""Images of any source (files, bytes, Pillow, arrays, tensors), gray or color, of any bit depth, as one type.

A file's metadata is applied: EXIF orientation, scaling of 16 bits and floats by their type; alpha is split
off. What cannot be read as an image is refused with a message that names the file; what was changed (the
first frame of several, 16-bit colors at 8 bits) is in the notes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .geometry.arrays import FULL_SCALE
from .picture_files import PictureError, Values, name_source, open_values

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L
HAS_ALPHA = (
    "The image has an alpha channel: its colors were used as they are, and the alpha is output as a mask."
)
NO_ALPHA = (
    "The image has an alpha channel: its colors were used as they are, also where it is transparent, and "
    "the alpha is left out."
)
IS_GREY = "The image is gray: its one channel was used for red, green and blue."


@dataclass(frozen=True)
class Pictures:
    """A batch of images, and what was changed about them."""

    rgb: Tensor  # (b, h, w, 3) float32 in [0, 1]
    alpha: Tensor | None  # (b, h, w) float32 in [0, 1], where the source had one
    notes: tuple[str, ...] = ()


def open_picture(source: Any, *, name: str | os.PathLike | None = None) -> Pictures:
    """The image of a file (path), of a file's bytes, or of a Pillow image, with b = 1.

    ``name`` is how a message names it.
    """
    name = name_source(source, name)
    return _to_pictures(open_values(source, name=name), name)


def open_rgb(source: Any, *, name: str | os.PathLike | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """The colors of an image file as uint8 (h, w, 3), and the notes.

    8 bits stay as they are, 16 are divided by 257. Alpha is left out.
    """
    name = name_source(source, name)
    found = open_values(source, name=name)
    left_out = () if found.alpha is None else (NO_ALPHA,)
    if found.values.dtype != np.uint8:
        pictures = _to_pictures(found, name)
        notes = tuple(note for note in pictures.notes if note not in (HAS_ALPHA, IS_GREY))
        return (pictures.rgb[0] * 255).round().to(torch.uint8), notes + left_out
    rgb = found.values if found.values.ndim == 3 else np.repeat(found.values[..., None], 3, axis=-1)
    return torch.from_numpy(np.array(rgb)), found.notes + left_out


def open_gray(source: Any, *, name: str | os.PathLike | None = None) -> Tensor:
    """An image file as float32 (h, w) in [0, 1]: colors by their luma.

    One with transparent pixels is refused, since their value is ambiguous.
    """
    name = name_source(source, name)
    found = _require_opaque(open_values(source, name=name), name)
    if found.values.ndim == 2:
        return _to_pictures(found, name).rgb[0, ..., 0].contiguous()
    return _to_pictures(found, name).rgb[0] @ torch.tensor(LUMA)


def open_mask(source: Any, *, name: str | os.PathLike | None = None) -> Tensor:
    """A mask file as bool (h, w): black (0 in every channel) is False, all else True, whatever the type.

    NaN is False.

    A palette image counts by its colors. One with transparent pixels is refused, since their value is
    ambiguous.
    """
    name = name_source(source, name)
    on = _require_opaque(open_values(source, name=name), name).values > 0
    return torch.from_numpy(np.ascontiguousarray(on if on.ndim == 2 else on.any(axis=-1)))


def open_labels(source: Any, *, name: str | os.PathLike | None = None) -> tuple[Tensor, int]:
    """Whole numbers of a one-channel file as int32 (h, w) (of a palette its indices), and the bits per
    number: 8, 16 or 32.
    """
    name = name_source(source, name)
    values = open_values(source, name=name, indices=True).values
    if values.ndim != 2 or not (
        np.isfinite(values).all() and (values == np.round(values)).all() and (values >= 0).all()
    ):
        kind = (
            "colors"
            if values.ndim != 2
            else f"values from {values.min():.6g} to {values.max():.6g}, not all whole and >= 0"
        )
        raise PictureError(
            f"Expected one gray channel of whole numbers in {name}, got {kind}. Save the numbers as a gray "
            "PNG."
        )
    return torch.from_numpy(values.astype(np.int32)), values.dtype.itemsize * 8


def read_pictures(source: Any) -> Pictures:
    """Images (h, w), (h, w, c) or (b, h, w, c) with 1 to 4 channels.

    Integers are scaled by their type, floats must be in [0, 1].

    Alpha is split off and does not affect the colors. Colors slightly outside [0, 1] are clamped and counted
    in the notes. A Pillow image is read as :func:`open_picture` reads its file.
    """
    if hasattr(source, "getbands"):
        return open_picture(source)
    pictures, notes = _to_floats(as_channels(as_tensor(source)))
    channels = pictures.shape[-1]
    alpha = pictures[..., -1] if channels in (2, 4) else None
    notes += [HAS_ALPHA] if alpha is not None else []
    if channels < 3:
        return Pictures(pictures[..., :1].expand(*pictures.shape[:-1], 3), alpha, (*notes, IS_GREY))
    return Pictures(pictures[..., :3], alpha, tuple(notes))


def as_tensor(source: Any) -> Tensor:
    """A tensor of a tensor, an array or a Pillow image; nothing is scaled.

    Alpha of a Pillow image is left out.
    """
    if isinstance(source, Tensor):
        return source
    if hasattr(source, "getbands"):
        source = open_values(source).values
    return torch.from_numpy(np.array(source))


def as_channels(picture: Tensor) -> Tensor:
    """(h, w), (h, w, c) or (b, h, w, c) -> (b, h, w, c); a ValueError shows any other shape."""
    shape = tuple(picture.shape)
    if picture.ndim == 2:
        picture = picture[None, :, :, None]
    elif picture.ndim == 3:
        picture = picture[None]
    if picture.ndim != 4 or not 1 <= picture.shape[-1] <= 4 or picture.numel() == 0:
        raise ValueError(
            "Expected an image of height x width, with 1 to 4 channels or none, or a batch of such, got "
            f"shape {shape}. Put the channels last."
        )
    return picture


def hold_in_range(picture: Tensor) -> tuple[Tensor, list[str]]:
    """Clamp floats to [0, 1] and say how many; NaN becomes 0.

    Values far outside have another scale and are refused.
    """
    broken = ~torch.isfinite(picture)
    picture = torch.where(broken, torch.zeros_like(picture), picture)
    low, high = picture.min().item(), picture.max().item()
    if low < -1 or high > 2:
        raise ValueError(
            f"Expected image values in [0, 1], got floats from {low:.4g} to {high:.4g}. Divide them by "
            "their full scale."
        )
    notes = []
    if broken.any():
        notes.append(f"{int(broken.sum())} image values are NaN or infinite and were set to 0.")
    outside = (picture < 0) | (picture > 1)
    if outside.any():
        notes.append(f"{int(outside.sum())} image values are outside [0, 1] and were clamped.")
    return picture.clamp(0, 1), notes


def _to_floats(pictures: Tensor) -> tuple[Tensor, list[str]]:
    """float32 in [0, 1] by the type, and notes."""
    if pictures.dtype in FULL_SCALE:
        return pictures.to(torch.float32) / FULL_SCALE[pictures.dtype], []
    if pictures.is_floating_point():
        return hold_in_range(pictures.to(torch.float32))
    raise ValueError(
        f"Expected an image of 8 or 16 bits (uint8, uint16) or floats in [0, 1], got {pictures.dtype}. "
        "Scale it to those."
    )


def _to_pictures(found: Values, name: str) -> Pictures:
    """The values of one file as colors in [0, 1]."""
    values = found.values
    # 16 bits, as some of Pillow's readers return them; wider types have no known full scale
    if values.dtype == np.int32:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise PictureError(
                f"Expected 16-bit values (0 to 65535) in {name}, got {low} to {high}. Save it with 16 bits."
            )
        values = values.astype(np.uint16)
    try:
        rgb, notes = _to_floats(as_channels(torch.from_numpy(np.array(values))))
    except ValueError as error:
        raise PictureError(f"{str(error).removesuffix('.')} (in {name}).") from error
    alpha = None if found.alpha is None else torch.from_numpy(found.alpha)[None]
    notes = [*found.notes, *notes] + ([HAS_ALPHA] if alpha is not None else [])
    if values.ndim == 2:
        return Pictures(rgb.expand(*rgb.shape[:-1], 3), alpha, (*notes, IS_GREY))
    return Pictures(rgb, alpha, tuple(notes))


def _require_opaque(found: Values, name: str) -> Values:
    if found.alpha is not None and (found.alpha < 1).any():
        raise PictureError(
            f"Expected an opaque gray image in {name}, got one with transparent pixels. Save it without "
            "alpha."
        )
    return found
