"""16-bit gray PNG: ``depth = value * scale + offset``, 0 is invalid; a JSON beside it repeats the metadata.

Metadata in text and JSON must be valid and must agree: neither has precedence.

Float text in Python is lossless, so a file read back differs from the depth by at most half a scale.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.view import Units, View
from ..text_files import read_json_object, show_path
from .files import (
    CAMERA,
    UnstatedError,
    camera_from_text,
    camera_to_text,
    check_direction,
    choose_units,
    name_units,
    one_picture,
    read_number,
    to_view,
    write_file,
)

_TOP = 65535
_ORIENTATION = 0x0112  # Exif's tag; 1 is upright, 2 to 8 are turned or mirrored
_FACTS = ("depth_units", "depth_scale", "depth_offset", "depth_invalid", "depth_direction")


def quantize(depth: Tensor, mask: Tensor, scale: float | None = None) -> tuple[np.ndarray, float, float]:
    """Depth and mask (h, w) to uint16 (h, w) with its scale and offset.

    Without ``scale`` the valid range fills 1 ... 65535. With it the offset is 0 (0.001 writes metres as
    millimetres), depths under one step become 1, so that they are not read as invalid, and depths beyond
    65535 steps are refused.
    """
    values, valid = depth.detach().cpu().double().numpy(), mask.cpu().numpy()
    low, high = float(values[valid].min()), float(values[valid].max())
    if scale is None:
        # the two ends lie 65534 steps apart; a constant depth takes the top value
        scale, offset = ((high - low) / (_TOP - 1), 0.0) if high > low else (high / _TOP, 0.0)
        offset = low - scale if high > low else 0.0
    else:
        offset = 0.0
        if not (math.isfinite(scale) and scale > 0) or high > scale * (_TOP + 0.5):
            raise ValueError(
                f"Expected depths of at most {scale * _TOP:.6g}, which 16 bits hold at a scale of "
                f"{scale:.6g}, got up to {high:.6g}. Give a larger scale or none, or write EXR."
            )
    steps = np.where(valid, np.rint((values - offset) / scale).clip(1, _TOP), 0)
    return steps.astype(np.uint16), scale, offset


def encode_png16(values: np.ndarray, text: dict[str, str] | None = None) -> bytes:
    """uint16 (h, w) as the bytes of a gray PNG with ``text`` in its tEXt chunks."""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values, dtype=np.uint16)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def write_png16(
    path: str | os.PathLike, view: View, *, scale: float | None = None, notes: Mapping[str, str] | None = None
) -> Path:
    """Write the depth of a View with batch 1, and the same metadata as JSON under the name with .json; see
    :func:`quantize`.

    ``notes`` are added to the PNG's text.
    """
    path, view = Path(path), one_picture(view)
    depth, mask = view.depth[0], view.mask[0]
    values, scale, offset = quantize(depth, mask, scale)
    facts: dict[str, Any] = {
        "depth_units": view.units,
        "depth_scale": scale,
        "depth_offset": offset,
        "depth_invalid": 0,
        "depth_direction": "larger = farther",
        "depth_formula": "depth = value * depth_scale + depth_offset",
    }
    text = {key: value if isinstance(value, str) else repr(value) for key, value in facts.items()}
    notes = {name: note for name, note in (notes or {}).items() if name not in (*_FACTS, CAMERA)}
    text = {**notes, **text, **camera_to_text(view)}
    valid = depth[mask]
    facts |= {
        "depth_min": float(valid.min()),
        "depth_max": float(valid.max()),
        "invalid_pixels": view.invalid_counts[0],
        "width": depth.shape[1],
        "height": depth.shape[0],
        "intrinsics": None if view.intrinsics is None else view.intrinsics[0].tolist(),
    }
    write_file(path, encode_png16(values, text))
    write_file(path.with_suffix(".json"), (json.dumps(facts, indent=2) + "\n").encode())
    return path


def read_png16(
    path: str | os.PathLike, *, scale: float | None = None, offset: float = 0.0, units: Units | None = None
) -> View:
    """Read a 16-bit gray PNG as a View; value 0 is invalid, and so is the value that tRNS declares
    transparent.

    Scale, offset, units and camera come from the file's text or, if another program dropped that, from the
    JSON beside it; where both state one, they must agree. Other programs' files state neither: pass ``scale``
    and ``units`` (and ``offset``), which also override the file's own. A ValueError names what is missing;
    FileNotFoundError and the like are the system's.
    """
    path = Path(path)
    source = show_path(path)
    values, text, transparent = _load(path)
    beside = find_sidecar(path)
    facts = _agree(
        _read_text(text, source),
        _read_sidecar(beside, values.shape, source),
        beside,
        source,
        ignored=scale is not None,
    )
    units = choose_units(
        facts.get("depth_units"), units, source if "depth_units" in text else show_path(beside)
    )
    if scale is None:
        if "depth_scale" not in facts:
            raise UnstatedError(
                f"Expected a scale for {source}, which does not state it, got none. Pass scale and units, "
                "as scale=0.001, units='metric' for millimetres.",
                ("scale",) if units else ("scale", "units"),
            )
        scale, offset = facts["depth_scale"], facts.get("depth_offset", 0.0)
    depth = np.where(values > 0, values.astype(np.float64) * scale + offset, 0.0)
    if transparent is not None:
        depth[values == transparent] = 0.0
    camera = {CAMERA: facts[CAMERA]} if CAMERA in facts else {}
    return to_view(depth, units=units, path=path, **camera)


def find_sidecar(path: Path) -> Path:
    """The path of the JSON beside a PNG, whether it exists or not."""
    beside, loud = path.with_suffix(".json"), path.with_suffix(".JSON")
    return loud if loud.is_file() and not beside.is_file() else beside


def _load(path: Path) -> tuple[np.ndarray, dict[str, str], int | None]:
    """Values (h, w), text and transparent value of a 16-bit gray PNG."""
    from PIL import Image

    data, source = io.BytesIO(path.read_bytes()), show_path(path)
    try:
        with Image.open(data) as picture:
            picture.load()
        kind, mode, text = picture.format, picture.mode, dict(getattr(picture, "text", {}))
        turned, transparent = picture.getexif().get(_ORIENTATION, 1), picture.info.get("transparency")
        frames, values = getattr(picture, "n_frames", 1), np.asarray(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ValueError(
            f"Expected a 16-bit gray PNG in {source}, got more pixels than can be opened ({error}). Make it "
            "smaller."
        ) from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        struct.error,
        zlib.error,
    ) as error:
        # what Pillow raises, depending on the place of the damage
        raise ValueError(
            f"Expected a 16-bit gray PNG in {source}, got no image or a damaged one. Save it again."
        ) from error
    if kind != "PNG" or not mode.startswith("I"):
        remedy = (
            "Load a depth of 8 bits as an image, and state what white means in View from Depth Image "
            "(view_from_image)"
        )
        raise ValueError(
            f"Expected a 16-bit gray PNG in {source}, got a {kind} image of mode {mode}. {remedy}."
        )
    if frames > 1:
        raise ValueError(
            f"Expected one depth in {source}, got an animation of {frames}. Save its frames one by one."
        )
    if turned in range(2, 9):
        raise ValueError(
            f"Expected an upright depth in {source}, got Exif orientation {turned}. Turn its pixels and "
            "remove the tag."
        )
    return values.astype(np.uint16), text, transparent if isinstance(transparent, int) else None


def _read_text(text: dict[str, str], source: str) -> dict[str, Any]:
    """The metadata in a PNG's text."""
    found = {name: text[name] for name in _FACTS if name in text}
    return _check_facts(found, source, text=True) | camera_from_text(text, source)


def _read_sidecar(beside: Path, shape: tuple[int, int], picture: str) -> dict[str, Any]:
    """The metadata in the JSON beside an image of this shape (height, width).

    Empty if there is none, or if it describes something else.
    """
    if not beside.is_file():
        return {}
    stated, source = read_json_object(beside), show_path(beside)
    found = {name: stated[name] for name in _FACTS if name in stated}
    if found or CAMERA in stated:
        for name, own in zip(("height", "width"), shape, strict=True):
            if name in stated and read_number(stated[name], name, source) != own:
                raise ValueError(
                    f"Expected the {name} {own} of {picture} in {source}, got {stated[name]}: it describes "
                    "another image. Remove it."
                )
    return _check_facts(found, source) | camera_from_text(stated, beside)


def _check_facts(found: dict[str, Any], source: str, *, text: bool = False) -> dict[str, Any]:
    """The metadata that a file states as numbers and a unit's name; impossible values are a ValueError."""
    facts = {
        name: read_number(found[name], name, source, above_zero=name == "depth_scale", text=text)
        for name in ("depth_scale", "depth_offset", "depth_invalid")
        if name in found
    }
    if facts.pop("depth_invalid", 0) != 0:
        raise ValueError(
            f"Expected 0 as 'depth_invalid' in {source}, got {found['depth_invalid']}. Set its invalid "
            "pixels to 0."
        )
    if "depth_direction" in found:
        check_direction(found["depth_direction"], source)
    if "depth_units" in found:
        facts["depth_units"] = name_units(found["depth_units"], source)
    return facts


def _agree(
    text: dict[str, Any], sidecar: dict[str, Any], beside: Path, source: str, *, ignored: bool
) -> dict[str, Any]:
    """What text and JSON state together; where they differ, it is a ValueError.

    ``ignored``: the caller passes the scale.
    """
    for name in text.keys() & sidecar.keys():
        mine, other = text[name], sidecar[name]
        if ignored and name in ("depth_scale", "depth_offset"):
            continue
        if not (torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other):
            shown = [value.tolist() if isinstance(value, Tensor) else value for value in (mine, other)]
            raise ValueError(
                f"Expected one {name} for {source}, got {shown[0]} in its text and {shown[1]} in "
                f"{show_path(beside)}. Correct or remove the JSON."
            )
    return sidecar | text
