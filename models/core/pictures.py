"""Whatever a caller has for a picture (tensor, numpy array, Pillow image; grey, RGB, RGBA; 8 bit, 16 bit, float) as one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1}
PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "F")  # Pillow's modes that an array shows as they are
DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's ways to hold 16 bits


@dataclass(frozen=True)
class Pictures:
    """A batch of pictures, and what had to be done to them."""

    rgb: Tensor  # b h w 3 float32 in [0, 1]
    alpha: Tensor | None  # b h w float32 in [0, 1], where the source had one
    notes: tuple[str, ...] = ()


def read_pictures(source: Any) -> Pictures:
    """Pictures 'h w', 'h w c' or 'b h w c' with 1 to 4 channels. Integers are scaled by their type, floats must lie in [0, 1].

    Alpha is split off and does not touch the colours. Colours a little outside [0, 1] are clamped and counted in the notes.
    """
    pictures = as_channels(as_tensor(source))
    if pictures.dtype in FULL_SCALE:
        pictures, notes = pictures.to(torch.float32) / FULL_SCALE[pictures.dtype], []
    elif pictures.is_floating_point():
        pictures, notes = hold_in_range(pictures.to(torch.float32))
    else:
        raise ValueError(f"A picture of {pictures.dtype} arrived; wanted 8 or 16 bits (uint8, uint16) or floats in [0, 1].")
    channels = pictures.shape[-1]
    alpha = pictures[..., -1] if channels in (2, 4) else None
    if alpha is not None:
        notes.append("The picture has an alpha channel: its colours were used as they are, and the alpha is handed on as a mask.")
    if channels < 3:
        notes.append("The picture is grey: its one channel was used for red, green and blue.")
        return Pictures(pictures[..., :1].expand(*pictures.shape[:-1], 3), alpha, tuple(notes))
    return Pictures(pictures[..., :3], alpha, tuple(notes))


def as_tensor(source: Any) -> Tensor:
    """A tensor of a tensor, an array or a Pillow image; nothing is scaled. 16-bit Pillow images keep their 16 bits."""
    if isinstance(source, Tensor):
        return source
    if hasattr(source, "getbands"):
        source = open_pillow(source)
    return torch.from_numpy(np.array(source))


def open_pillow(image: Any) -> np.ndarray:
    """The values of a Pillow image, palettes and other colour spaces turned to RGB or RGBA."""
    if image.mode in DEEP_MODES:
        return np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)
    if image.mode in PLAIN_MODES:
        return np.asarray(image)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def as_channels(picture: Tensor) -> Tensor:
    """'h w', 'h w c' or 'b h w c' -> 'b h w c'; a ValueError shows any other shape."""
    shape = tuple(picture.shape)
    if picture.ndim == 2:
        picture = picture[None, :, :, None]
    elif picture.ndim == 3:
        picture = picture[None]
    if picture.ndim != 4 or not 1 <= picture.shape[-1] <= 4 or picture.numel() == 0:
        raise ValueError(f"A picture of shape {shape} arrived; wanted height x width, with 1 to 4 channels or none, or a batch of such.")
    return picture


def hold_in_range(picture: Tensor) -> tuple[Tensor, list[str]]:
    """Clamp floats to [0, 1] and say how many; NaN becomes 0. What is far outside was meant otherwise and is refused."""
    broken = ~torch.isfinite(picture)
    picture = torch.where(broken, torch.zeros_like(picture), picture)
    low, high = picture.min().item(), picture.max().item()
    if low < -1 or high > 2:
        raise ValueError(f"A picture with values from {low:.4g} to {high:.4g} arrived; wanted floats in [0, 1]: divide by its full scale.")
    notes = []
    if broken.any():
        notes.append(f"{int(broken.sum())} picture values are NaN or infinite and were set to 0.")
    outside = (picture < 0) | (picture > 1)
    if outside.any():
        notes.append(f"{int(outside.sum())} picture values lie outside [0, 1] and were clamped.")
    return picture.clamp(0, 1), notes
