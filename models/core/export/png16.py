"""16-bit grey PNG: ``depth = value * scale + offset``, 0 is invalid; scale, offset and units stand in the file and in a JSON beside it.

Python float text keeps every digit, so a file read back differs from what was written by at most half a scale.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..geometry.view import Units, View
from .files import UnstatedError, camera_from_text, camera_to_text, one_picture, to_view, write_file

_TOP = 65535
_KEYS = {"depth_units": str, "depth_scale": float, "depth_offset": float}


def quantise(depth: Tensor, mask: Tensor, scale: float | None = None) -> tuple[np.ndarray, float, float]:
    """Depth and mask ``h w`` to uint16 ``h w`` with its scale and offset.

    Without ``scale`` the valid range fills 1 ... 65535. With it the offset is 0 (0.001 writes metres as millimetres),
    depths under one step become 1, so as not to read as invalid, and depths beyond 65535 steps are refused.
    """
    values, valid = depth.detach().cpu().double().numpy(), mask.cpu().numpy()
    low, high = float(values[valid].min()), float(values[valid].max())
    if scale is None:
        # the two ends lie 65534 steps apart; a constant depth takes the top value
        scale, offset = ((high - low) / (_TOP - 1), 0.0) if high > low else (high / _TOP, 0.0)
        offset = low - scale if high > low else 0.0
    else:
        offset = 0.0
        if not scale > 0 or high > scale * (_TOP + 0.5):
            raise ValueError(
                f"Depths up to {high:.6g} do not fit into 16 bits at a scale of {scale:.6g} (at most {scale * _TOP:.6g}); "
                "give a larger scale or none, or write EXR."
            )
    steps = np.where(valid, np.rint((values - offset) / scale).clip(1, _TOP), 0)
    return steps.astype(np.uint16), scale, offset


def encode_png16(values: np.ndarray, text: dict[str, str] | None = None) -> bytes:
    """uint16 ``h w`` as the bytes of a grey PNG with ``text`` in its tEXt chunks."""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values, dtype=np.uint16)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def write_png16(path: str | os.PathLike, view: View, *, scale: float | None = None, notes: Mapping[str, str] | None = None) -> Path:
    """Write the depth of a View with batch 1, and the same facts as JSON under the name with .json; see :func:`quantise`.

    ``notes`` go into the PNG's text, beside the facts.
    """
    path, view = Path(path), one_picture(view)
    depth, mask = view.depth[0], view.mask[0]
    values, scale, offset = quantise(depth, mask, scale)
    facts: dict[str, Any] = {
        "depth_units": view.units,
        "depth_scale": scale,
        "depth_offset": offset,
        "depth_invalid": 0,
        "depth_direction": "larger = farther",
        "depth_formula": "depth = value * depth_scale + depth_offset",
    }
    text = {key: value if isinstance(value, str) else repr(value) for key, value in facts.items()}
    text = {**(notes or {}), **text, **camera_to_text(view)}
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


def read_png16(path: str | os.PathLike, *, scale: float | None = None, offset: float = 0.0, units: Units | None = None) -> View:
    """Read a 16-bit grey PNG as a View; value 0 is invalid.

    Scale, offset, units and camera come from the file's text or, when another program dropped that, from the JSON beside it.
    A file of other origin says neither: pass ``scale`` and ``units`` (and ``offset``), which also override the file's own.
    ValueError tells what is missing; FileNotFoundError and the like are the system's.
    """
    path = Path(path)
    values, text = _load(path)
    found = text if _facts(text) else _sidecar(path)
    facts = _facts(found)
    if scale is None:
        if facts is None:
            raise UnstatedError(f"{path} does not say its scale: pass scale and units, as scale=0.001, units='metric' for millimetres.")
        scale, offset = facts["depth_scale"], facts["depth_offset"]
    units = units or (facts["depth_units"] if facts else None)
    depth = np.where(values > 0, values.astype(np.float64) * scale + offset, 0.0)
    return to_view(depth, units=units, path=path, **camera_from_text(found, path))


def _load(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    from PIL import Image

    data = io.BytesIO(path.read_bytes())
    try:
        with Image.open(data) as picture:
            picture.load()
            kind, mode, text = picture.format, picture.mode, dict(getattr(picture, "text", {}))
            values = np.asarray(picture)
    except (OSError, SyntaxError, struct.error) as error:  # what Pillow raises, depending on the place of the damage
        raise ValueError(f"{path} is no picture, or a damaged one; wanted a 16-bit grey PNG.") from error
    if kind != "PNG" or not mode.startswith("I"):
        remedy = "load a depth of 8 bits as a picture, and say what white means in View from Depth Image (view_from_image)"
        raise ValueError(f"{path} is a {kind} picture of mode {mode}, wanted a 16-bit grey PNG: {remedy}.")
    return values.astype(np.uint16), text


def _sidecar(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{beside} is not JSON; mend or remove it, and pass scale and units.") from error
    return facts if isinstance(facts, dict) else {}


def _facts(found: dict[str, Any]) -> dict[str, Any] | None:
    """The three facts a reader needs, or None if this is not our file."""
    if not all(key in found for key in _KEYS):
        return None
    return {key: kind(found[key]) for key, kind in _KEYS.items()}
