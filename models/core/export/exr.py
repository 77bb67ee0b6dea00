"""OpenEXR: 32-bit float channels, values unchanged, no color curve.

Decision: our own writer and reader of flat scanline files. PyAV, which ComfyUI requires, writes float EXR
exactly (tested: bit for bit, infinities too), but only as Y or RGB(A): neither the Z channel where
compositing programs look for a depth, nor Z beside RGB, nor attributes for the units; its decoder drops a Z
channel. The OpenEXR package is not among ComfyUI's requirements, and serves the tests as the independent
reader; where it is installed it is not used either, so that a file gives the same depth on every machine.
Format: openexr.com, "OpenEXR File Layout".
"""

from __future__ import annotations

import logging
import math
import os
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from ..geometry.view import Units, View
from .exr_blocks import METHODS, ROWS, compress_zip
from .exr_reader import MAGIC, Header, read_file, show_box
from .files import CAMERA, camera_from_text, camera_to_text, one_picture, to_view, write_file

log = logging.getLogger("spatialweave.export")

_LONGEST_NAME = 31
_ZIP = METHODS.index("ZIP")
_DIRECTION = "larger = farther"
_LARGEST_HALF = 65504.0
_DEPTH_WORDS = {"depth", "z", "zdepth", "z_depth", "depthz"}
_NAME_IT = (
    "Name the one with the depth: exr_channel in Load Depth, channel= in Python, --channel at the command "
    "line."
)
# Blender's compositor writes depth.V, others the one value of a gray layer as Y
_VALUES = {"z", "v", "y", "value"}


def srgb_to_linear(image: Tensor) -> Tensor:
    """Display values (h, w, 3) in [0, 1] to the linear light that EXR's R, G and B hold (IEC 61966-2-1)."""
    from kornia.color import rgb_to_linear_rgb  # late: a depth without its image does not need it

    return rgb_to_linear_rgb(image.movedim(-1, 0)).movedim(0, -1)


def encode_exr(
    channels: Mapping[str, np.ndarray], attributes: Mapping[str, str | float] | None = None
) -> bytes:
    """Channels of equal (h, w) as the bytes of a ZIP-compressed scanline EXR of float32, with text or float
    attributes.
    """
    planes = {name: np.asarray(channels[name], dtype="<f4") for name in sorted(channels)}
    shapes = {plane.shape for plane in planes.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"Expected EXR channels of one (h, w), got {sorted(shapes)}. Resize them to one size."
        )
    height, width = shapes.pop()
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    listing = b"".join(name.encode() + b"\0" + struct.pack("<4i", 2, 0, 1, 1) for name in planes) + b"\0"
    header = [
        ("channels", "chlist", listing),
        ("compression", "compression", bytes([_ZIP])),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    ]
    for name, value in (attributes or {}).items():
        header.append(
            (name, "string", value.encode())
            if isinstance(value, str)
            else (name, "float", struct.pack("<f", value))
        )
    # longer names would need a flag in the version field
    if any(len(name) > _LONGEST_NAME for name in (*planes, *(attributes or {}))):
        raise ValueError(
            f"Expected EXR channel and attribute names of at most {_LONGEST_NAME} characters, got longer "
            "ones. Shorten them."
        )
    head = struct.pack("<2I", MAGIC, 2) + b"".join(_attribute(*entry) for entry in header) + b"\0"
    parts, sizes = [], []
    for row in range(0, height, ROWS["ZIP"]):
        # (rows, c, w): a scanline holds one channel after the other
        block = np.stack([plane[row : row + ROWS["ZIP"]] for plane in planes.values()], axis=1)
        packed = compress_zip(block.reshape(-1).view(np.uint8))
        parts += [struct.pack("<2i", row, len(packed)), packed]
        sizes.append(len(parts[-2]) + len(packed))
    offsets = np.cumsum([len(head) + 8 * len(sizes), *sizes[:-1]])
    return b"".join([head, offsets.astype("<u8").tobytes(), *parts])


def decode_exr(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Channels (float32 (h, w), uint as uint32) and attributes of a flat scanline EXR.

    Without compression, or by RLE, ZIP, ZIPS or PXR24. The shape is that of the display window; outside the
    data window the channels are 0.
    """
    header, planes = read_file(data, choose=list)
    floats = {name: plane.astype(np.float32) for name, plane in planes.items() if plane.dtype.kind == "f"}
    return {**planes, **floats}, header.attributes


def write_exr(
    path: str | os.PathLike,
    view: View,
    *,
    rgb_linear: Tensor | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write the depth of a View with batch 1 as channel Z, 0 where invalid, infinite where sky, units and
    direction as attributes.

    ``rgb_linear`` (h, w, 3) is written to R, G, B unchanged; pass ``srgb_to_linear(view.image[0])`` for an
    ordinary image. The camera and ``notes`` become text attributes.
    """
    view = one_picture(view)
    depth = view.depth[0] if view.sky is None else view.depth[0].masked_fill(view.sky[0], math.inf)
    channels = {"Z": depth.detach().cpu().numpy()}
    if rgb_linear is not None:
        if rgb_linear.shape != (*view.depth.shape[1:], 3):
            expected = (*view.depth.shape[1:], 3)
            raise ValueError(
                f"Expected RGB of the depth map's {expected}, got {tuple(rgb_linear.shape)}. Resize it."
            )
        channels |= {name: rgb_linear[..., index].detach().cpu().numpy() for index, name in enumerate("RGB")}
    attributes = {"depthUnits": view.units, "depthDirection": _DIRECTION, "depthInvalid": 0.0}
    short = {
        name: text for name, text in (notes or {}).items() if len(name) <= _LONGEST_NAME and name != CAMERA
    }
    return write_file(path, encode_exr(channels, {**short, **attributes, **camera_to_text(view)}))


def read_exr(
    path: str | os.PathLike,
    *,
    units: Units | None = None,
    channel: str | None = None,
    background: float | None = None,
) -> View:
    """Read a depth from an EXR: the ``channel`` named, or the one that :func:`find_depth` finds.

    ``units`` are for files without ours. From the depth ``background`` on everything is sky. A half channel
    holds at most 65504, so a background beyond that has this value.
    """
    path = Path(path)
    try:
        header, planes = read_file(path.read_bytes(), choose=lambda names: _choose(channel, names))
    except ValueError as error:
        raise ValueError(f"Cannot read {path}: {error}") from error
    ((name, plane),) = planes.items()
    _tell(path, header, name)
    attributes = header.attributes
    _check_statements(attributes, units, path)
    depth = np.where(plane == attributes.get("depthInvalid", 0.0), 0, plane).astype(np.float32)
    camera = camera_from_text(attributes, path)
    view = to_view(depth, units=units or attributes.get("depthUnits"), path=path, **camera)
    if background is None:
        return view
    return view.with_sky_from(min(background, _LARGEST_HALF) if plane.dtype == np.float16 else background)


def find_depth(names: Collection[str]) -> str:
    """The one channel that is a depth by its name; a ValueError lists them all if there is none, or more than
    one.

    Of layers (``ViewLayer.Depth.Z``) the last component counts. Z beside X is the third component of a
    vector.
    """
    if "Z" in names and not _is_vector("Z", names):
        return "Z"
    found = [name for name in names if _is_depth(name) and not _is_vector(name, names)]
    if len(names) == 1 or len(found) == 1:
        return (found or list(names))[0]
    vectors = sorted(name for name in names if _is_vector(name, names))
    about = f"; {', '.join(vectors)} beside X is part of a vector, not a depth" if vectors else ""
    raise ValueError(
        f"Expected one channel that is a depth by its name, got {sorted(names)}{about}. {_NAME_IT}"
    )


def _is_vector(name: str, names: Collection[str]) -> bool:
    """Whether a Z is that of a normal, a position or a motion: its layer has an X as well."""
    layer, dot, value = name.rpartition(".")
    cases = {"Z": "X", "z": "x"}
    return value in cases and f"{layer}{dot}{cases[value]}" in names


def _is_depth(name: str) -> bool:
    """Depth.Z, ViewLayer.Depth.Z, depth.V, depth; Mist.Z and Denoising Depth.Z are other things."""
    layer, _, value = name.lower().rpartition(".")
    layer = layer.rpartition(".")[2]
    if value == "z" and not layer:
        return True
    return value in _DEPTH_WORDS - {"z"} or (value in _VALUES and layer in _DEPTH_WORDS)


def _choose(channel: str | None, names: Collection[str]) -> list[str]:
    channel = channel or find_depth(names)
    if channel not in names:
        raise ValueError(f"Expected a channel named {channel!r}, got {sorted(names)}. {_NAME_IT}")
    return [channel]


def _tell(path: Path, header: Header, channel: str) -> None:
    """Log which channel was read, and a data window that is smaller than the display window."""
    if channel != "Z":
        log.info("%s: the depth is channel %r of %s.", path, channel, sorted(header.channels))
    if header.data_window != header.display_window:
        windows = show_box(header.data_window), show_box(header.display_window)
        words = "%s: the data window %s lies inside the display window %s; outside it no pixel is valid."
        log.info(words, path, *windows)


def _check_statements(attributes: Mapping[str, Any], units: Units | None, path: Path) -> None:
    """Refuse a unit or direction in the file that this reader does not support.

    The caller's ``units`` replace the file's.
    """
    stated = attributes.get("depthUnits", "metric")
    if units is None and stated not in get_args(Units):
        raise ValueError(
            f"{path}: Expected depthUnits 'metric' or 'relative', got {stated!r}. Bring the values to "
            "metres, or state units if they are."
        )
    direction = attributes.get("depthDirection", _DIRECTION)
    if direction != _DIRECTION:
        raise ValueError(
            f"{path}: Expected depthDirection {_DIRECTION!r}, got {direction!r}. Convert the values to "
            "distances first."
        )


def _attribute(name: str, kind: str, value: bytes) -> bytes:
    return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
