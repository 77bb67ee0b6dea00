"""Depth files of any format: the suffix chooses the writer or reader."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..geometry.view import Units, View
from .exr import read_exr, srgb_to_linear, write_exr
from .npz import load_npz, write_npz
from .png16 import find_sidecar, read_png16, write_png16

Format = Literal["png", "exr", "npz"]
SUFFIXES = (".png", ".exr", ".npz")


def write_depth(
    path: str | os.PathLike,
    view: View,
    *,
    scale: float | None = None,
    picture: bool = True,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write a View by the suffix of ``path``: NPZ takes any batch and all fields, PNG and EXR the depth of
    one image.

    ``scale`` is the depth of one of the PNG's 65535 steps, None to fill them; ``picture`` writes the view's
    image to the EXR's R, G and B, in linear light. ``notes`` are texts stored in the file, as core's savers'
    "prompt" and "workflow".
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix == ".npz":
        return write_npz(path, view, notes=notes)
    if suffix == ".png":
        return write_png16(path, view, scale=scale, notes=notes)
    shown = picture and view.image is not None and len(view) == 1
    return write_exr(path, view, rgb_linear=srgb_to_linear(view.image[0]) if shown else None, notes=notes)


def read_depth(
    path: str | os.PathLike,
    *,
    units: Units | None = None,
    scale: float | None = None,
    channel: str | None = None,
    background: float | None = None,
) -> View:
    """Read a depth by the suffix of ``path``.

    The arguments state the unit, a PNG's scale or an EXR's channel if the file does not.

    From the depth ``background`` on everything is sky, for programs that write a number where nothing is:
    Blender's Z pass 1e10.
    """
    return load_depth(path, units=units, scale=scale, channel=channel, background=background)[0]


def load_depth(
    path: str | os.PathLike,
    *,
    units: Units | None = None,
    scale: float | None = None,
    channel: str | None = None,
    background: float | None = None,
) -> tuple[View, tuple[str, ...]]:
    """As :func:`read_depth`, with notes on what of the file was left out."""
    path = Path(path)
    suffix, notes = _suffix(path), ()
    if suffix == ".npz":
        view, notes = load_npz(path, units=units)
    elif suffix == ".png":
        view = read_png16(path, scale=scale, units=units)
    else:
        return read_exr(path, units=units, channel=channel, background=background), ()
    return view if background is None else view.with_sky_from(background), notes


def may_hold_depth(path: str | os.PathLike) -> bool:
    """Whether a file could be one that :func:`read_depth` reads: of PNGs only those of 16-bit gray, by their
    first bytes.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        return path.suffix.lower() in SUFFIXES
    try:
        with path.open("rb") as file:
            start = file.read(26)
    except OSError:
        return False
    return start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and start[24:26] == b"\x10\x00"


def fingerprint_depth(path: str | os.PathLike) -> str:
    """A text that changes with every file that :func:`read_depth` reads, the JSON beside a PNG too."""
    path = Path(path)
    prints = [_stamp(path)]
    if path.suffix.lower() == ".png":
        beside = find_sidecar(path)
        # small, and replaced by programs that keep its size and date
        prints.append(hashlib.sha256(beside.read_bytes()).hexdigest() if beside.is_file() else "alone")
    return " ".join(prints)


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {status.st_size}"


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        remedy = (
            "Save an array by numpy.savez(path, depth=array)" if suffix == ".npy" else "Choose another file"
        )
        raise ValueError(
            f"Expected a depth file that ends in {', '.join(SUFFIXES)}, got {path.name}. {remedy}."
        )
    return suffix
