"""What one step of a 16-bit depth PNG is: the known conventions by name, or a number."""

from __future__ import annotations

import math
import os

# the depth of one of the PNG's steps, in metres
SCALES = {"millimetres (0.001)": 0.001, "KITTI (1/256)": 1 / 256, "TUM (1/5000)": 1 / 5000}
OVER_RANGE = "16-bit over a range"
TYPED_OR_FILE = "as typed, or as the file says"
TYPED_OR_FILLED = "as typed, or the depth's own range"
_TOP = 65535


def scale_to_write(preset: str, typed: float) -> float | None:
    """The depth of one step by ``preset`` and the number ``typed`` beside it; None: the depth's own range
    fills the steps.

    Over a range the number is the depth of the last step, 65535.
    """
    if not (math.isfinite(typed) and typed >= 0):
        raise ValueError(
            f"Expected a png_scale of 0 or more, got {typed}. Type the depth of one step, as 0.001 for "
            "millimetres."
        )
    if preset == OVER_RANGE:
        return typed / _TOP or None
    if preset in (TYPED_OR_FILE, TYPED_OR_FILLED):
        return typed or None
    if preset not in SCALES:
        raise ValueError(
            f"Expected a png_scale_preset of {[*SCALES, OVER_RANGE]} or as typed, got {preset!r}. Choose one."
        )
    if typed and not math.isclose(typed, SCALES[preset], rel_tol=1e-6):
        raise ValueError(
            f"Expected png_scale 0 beside png_scale_preset {preset!r}, got {typed:g}. Set png_scale to 0, "
            "or png_scale_preset to as typed."
        )
    return SCALES[preset]


def scale_to_read(preset: str, typed: float, path: str | os.PathLike) -> float | None:
    """The same for a file to be read; None: as the file states. A preset that does not apply is refused."""
    name = os.path.basename(path)
    if preset != TYPED_OR_FILE and not name.lower().endswith(".png"):
        raise ValueError(
            f"Expected a PNG for png_scale_preset {preset!r}, got {name}. Set png_scale_preset to as typed."
        )
    if preset == OVER_RANGE and not typed:
        raise ValueError(
            f"Expected in png_scale the depth of the last step, 65535, for {preset!r}, got 0. "
            "Type it, as 10 for 10 metres."
        )
    return scale_to_write(preset, typed)
