"""8-bit RGB PNG: images for people; a depth belongs into png16, exr or npz."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .files import write_file


def to_uint8(image: Tensor) -> Tensor:
    """An image (..., 3) in [0, 1] as 8-bit levels."""
    return (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)


def encode_png8(image: Tensor, text: Mapping[str, str] | None = None) -> bytes:
    """An image (h, w, 3) in [0, 1] as the bytes of a PNG, with ``text`` (seed, prompt ...) in its metadata.
    """
    from PIL import Image, PngImagePlugin

    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"Expected an image (h, w, 3), got {tuple(image.shape)}. Pick one of the batch.")
    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image).numpy()).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def write_png8(path: str | os.PathLike, image: Tensor, text: Mapping[str, str] | None = None) -> Path:
    """Write one image; see :func:`encode_png8`."""
    return write_file(path, encode_png8(image, text))
