"""Animated WebP through Pillow: small, in full color, and shown by every browser."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .files import write_file
from .png8 import to_uint8


def encode_webp(
    frames: Tensor | Sequence[Tensor], *, fps: float = 24.0, quality: int = 88, lossless: bool = False
) -> bytes:
    """Frames (t, h, w, 3) in [0, 1], or a list of equal (h, w, 3), as an endless animation.

    One frame is a still image.
    """
    from PIL import Image, features

    if len(frames) == 0 or any(
        frame.shape != frames[0].shape or frame.ndim != 3 or frame.shape[-1] != 3 for frame in frames
    ):
        shapes = sorted({tuple(frame.shape) for frame in frames})
        raise ValueError(
            f"Expected one or more frames, all of one (h, w, 3), got {shapes}. Resize them to one size."
        )
    if not 0 < fps <= 1000:
        raise ValueError(f"Expected more than 0 and at most 1000 frames a second, got {fps}. Correct fps.")
    if not features.check("webp"):
        raise RuntimeError(
            "Expected a Pillow with WebP, got one built without. Reinstall it with pip install "
            "--force-reinstall pillow."
        )
    first, *rest = [Image.fromarray(to_uint8(frame).numpy()) for frame in frames]
    # WebP counts whole milliseconds: rounding the running time keeps the total length exact
    times = [round(1000 * index / fps) for index in range(len(frames) + 1)]
    durations = [end - start for start, end in zip(times, times[1:], strict=False)]
    buffer = io.BytesIO()
    # method 2 of 0 ... 6: a third of the time of the default 4 for a tenth more bytes
    animation = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0} if rest else {}
    first.save(buffer, "WEBP", quality=quality, method=2, lossless=lossless, **animation)
    return buffer.getvalue()


def write_webp(
    path: str | os.PathLike,
    frames: Tensor | Sequence[Tensor],
    *,
    fps: float = 24.0,
    quality: int = 88,
    lossless: bool = False,
) -> Path:
    """Write an animation; see :func:`encode_webp`."""
    return write_file(path, encode_webp(frames, fps=fps, quality=quality, lossless=lossless))
