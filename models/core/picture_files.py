"""What Pillow reads of an image file: its values upright and unscaled, its alpha, and notes. No torch.

EXIF orientation is applied; tRNS, palettes and premultiplied colors become alpha and plain colors. What is
not an image is refused with a message that names the file. `pictures.py` makes colors, masks and labels of
the numbers.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from .text_files import show_path

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's ways to hold 16 bits
# of one file: the limit of Pillow's own guard, which no setting from outside raises
MOST_PIXELS = 178_956_970
ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation -> member of Image.Transpose that makes it upright
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
# what Pillow raises on side data that is broken
UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, SyntaxError, ArithmeticError,
    RuntimeError, struct.error,
)  # fmt: skip


class PictureError(ValueError):
    """An image that cannot be read; one message names the file, the fault and what to do."""


class Values(NamedTuple):
    """The upright numbers of one image file, nothing scaled."""

    values: np.ndarray  # (h, w) (gray) or (h, w, 3); uint8, uint16, int32 (Pillow's mode I) or float32
    alpha: np.ndarray | None  # (h, w) float32 in [0, 1]
    mode: str  # Pillow's
    notes: tuple[str, ...] = ()
    text: Mapping[str, str] = MappingProxyType({})  # of a PNG


def open_values(source: Any, *, name: str | os.PathLike | None = None, indices: bool = False) -> Values:
    """The values of an image file, upright and unscaled; ``indices`` keeps those of a palette."""
    from PIL import Image  # late: callers with tensors do not need it

    name = name_source(source, name)
    given = hasattr(source, "getbands")
    try:
        if given:
            return _decode(source, name, indices)
        data = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
        with Image.open(data) as image:
            return _decode(image, name, indices)
    except PictureError:
        raise
    # Pillow raises almost any exception on a damaged file
    except Exception as error:
        raise PictureError(f"Expected an image in {name}, got {_fault(error, source)}.") from error


def name_source(source: Any, name: str | os.PathLike | None) -> str:
    """How a message names a source."""
    if name is not None:
        return show_path(name)
    if isinstance(source, (str, os.PathLike)):
        return show_path(source)
    return show_path(getattr(source, "filename", "") or "the given data")


def _fault(error: Exception, source: Any) -> str:
    """What is wrong with a file, and what to do, by what Pillow or the system raised."""
    from PIL import Image, UnidentifiedImageError

    size = len(source) if isinstance(source, (bytes, bytearray)) else None
    if (
        isinstance(source, (str, os.PathLike))
        and not isinstance(error, ValueError)
        and os.path.isfile(source)
    ):
        size = os.path.getsize(source)
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than are read at once ({error}). Make it smaller"
    if size == 0:
        return "an empty file. Save it anew"
    if isinstance(error, UnidentifiedImageError):
        return "a file that Pillow does not know. Give a PNG, JPEG, WebP or TIFF file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"an error of the system ({error.strerror}). Check the path and its permissions"
    return f"a damaged or truncated file ({error or type(error).__name__}). Save it anew".replace("..", ".")


def _decode(image: Any, name: str, indices: bool) -> Values:
    """The values of an open Pillow image; the caller handles what Pillow raises."""
    width, height = image.size
    if width * height == 0:
        raise PictureError(
            f"Expected an image in {name}, got one of {width} x {height} pixels. Save it anew."
        )
    if width * height > MOST_PIXELS:
        raise PictureError(
            f"Expected at most {MOST_PIXELS} pixels in {name}, got {width} x {height}. Make it smaller."
        )
    if image.format == "EPS":  # Pillow would run Ghostscript on it
        raise PictureError(
            f"Expected pixels in {name}, got an EPS file. Give a PNG, JPEG, WebP or TIFF file."
        )
    bits, frames = _find_bits(image), _count_frames(image)
    image.load()
    text = dict(getattr(image, "text", {}))
    image, exif = _turn_upright(image)
    values, alpha = _split(image, bits, indices)
    depth = ()
    if bits > 8 and values.dtype == np.uint8:
        depth = (f"The image has {bits} bits per color; Pillow reads the upper 8 of them.",)
    return Values(values, alpha, image.mode, (*frames, *exif, *depth), text)


def _find_bits(image: Any) -> int:
    """Bits of a sample as the file stores it, where Pillow's decoder says (before loading), else 8."""
    stored = str([tile[3] for tile in getattr(image, "tile", [])])
    if image.format == "PPM" and isinstance(image.tile[0][3], tuple):
        return 16 if image.tile[0][3][-1] > 255 else 8
    return next((bits for bits in (16, 2, 4) if f";{bits}" in stored), 8)


def _count_frames(image: Any) -> tuple[str, ...]:
    """A note if a file has several frames."""
    try:
        count, at = getattr(image, "n_frames", 1), image.tell()
    except UNREADABLE:  # a later frame is broken, or the caller closed the file
        return ()
    return (f"The file has {count} frames; frame {at + 1} was used.",) if count > 1 else ()


def _turn_upright(image: Any) -> tuple[Any, tuple[str, ...]]:
    """A loaded image turned by its EXIF orientation, which Pillow does by itself for TIFF alone.

    A note says if the EXIF data cannot be read.
    """
    from PIL import Image

    try:
        orientation = image.getexif().get(ORIENTATION)
    except UNREADABLE:  # broken EXIF is ignored: the pixels are intact
        return image, ("The EXIF data cannot be read; the image is assumed to be upright.",)
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return (image.transpose(getattr(Image.Transpose, method)) if method else image), ()


def _split(image: Any, bits: int, indices: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Values ((h, w) or (h, w, 3)) and alpha ((h, w) in [0, 1], or None) of a loaded image of any mode."""
    mode, key = image.mode, image.info.get("transparency")
    if mode == "P" and indices:
        return np.asarray(image), None
    if mode in (*DEEP_MODES, "I", "F"):
        values = np.asarray(image).astype({"I": np.int32, "F": np.float32}.get(mode, np.uint16))
        # white is zero; Pillow inverts 8 bits only
        if mode in DEEP_MODES and image.format == "TIFF" and image.tag_v2.get(262) == 0:
            values = 65535 - values
        return values, _key_to_alpha(values, key)
    if mode in ("1", "L", "RGB"):
        values = np.asarray(image.convert("L") if mode == "1" else image)
        if key is not None and mode != "RGB":
            # tRNS counts in the stored bits
            key = int(key) * {1: 255, 2: 85, 4: 17}.get(1 if mode == "1" else bits, 1)
        if key is not None and mode == "RGB" and bits == 16:
            key = tuple(part >> 8 for part in key)
        return values, _key_to_alpha(values, key)
    values = np.asarray(_to_plain(image))
    if values.ndim == 3 and values.shape[-1] in (2, 4):
        alpha = values[..., -1].astype(np.float32) / 255
        return np.ascontiguousarray(values[..., :-1]).squeeze(-1) if values.shape[-1] == 2 else values[
            ..., :3
        ], alpha
    return values, None


def _key_to_alpha(values: np.ndarray, key: Any) -> np.ndarray | None:
    """Alpha of a color key (PNG's tRNS): 0 where the image has exactly that color, else 1."""
    if key is None:
        return None
    same = values == np.asarray(key)
    return 1 - (same.all(axis=-1) if values.ndim == 3 else same).astype(np.float32)


def _to_plain(image: Any) -> Any:
    """Palettes, premultiplied colors and other color spaces as LA, RGB or RGBA."""
    mode = image.mode
    if mode in ("LA", "RGBA"):
        return image
    if mode in ("La", "RGBa"):
        return image.convert(mode.upper())
    if mode == "LAB":  # Pillow has no conversion for these
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
