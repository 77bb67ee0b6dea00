"""OpenEXR: 32-bit float channels, the numbers as they are, no colour curve anywhere.

Decision: our own writer and reader of flat scanline files. PyAV, which ComfyUI brings, writes float EXR exactly (tried: bit
for bit, infinities too), but only as Y or RGB(A): neither the Z channel where compositing programs look for a depth, nor Z
beside RGB, nor attributes for the units; its decoder drops a Z channel. The OpenEXR package is not among ComfyUI's
requirements, and serves the tests as the independent reader. Format: openexr.com, "OpenEXR File Layout".
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..geometry.view import Units, View
from .files import camera_from_text, camera_to_text, one_picture, to_view, write_file

_MAGIC = 20000630
_PIXELS = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
_NONE, _ZIPS, _ZIP = 0, 2, 3
_LONGEST_NAME = 31
_ROWS = {_NONE: 1, _ZIPS: 1, _ZIP: 16}
_UNREAD_FLAGS = {0x200: "tiled", 0x800: "deep", 0x1000: "multi-part"}


def srgb_to_linear(image: Tensor) -> Tensor:
    """Display values in [0, 1] to the linear light that EXR's R, G and B hold (IEC 61966-2-1)."""
    return ((image + 0.055) / 1.055).clamp_min(0).pow(2.4).where(image > 0.04045, image / 12.92)


def encode_exr(channels: Mapping[str, np.ndarray], attributes: Mapping[str, str | float] | None = None) -> bytes:
    """Channels of equal ``h w`` as the bytes of a ZIP-compressed scanline EXR of float32, with text or float attributes."""
    planes = {name: np.asarray(channels[name], dtype="<f4") for name in sorted(channels)}
    shapes = {plane.shape for plane in planes.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"EXR channels of shapes {sorted(shapes)} arrived, wanted one or more of one (height, width).")
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
        header.append((name, "string", value.encode()) if isinstance(value, str) else (name, "float", struct.pack("<f", value)))
    # longer names would need a flag in the version field
    if any(len(name) > _LONGEST_NAME for name in (*planes, *(attributes or {}))):
        raise ValueError(f"EXR channel and attribute names hold at most {_LONGEST_NAME} characters.")
    head = struct.pack("<2I", _MAGIC, 2) + b"".join(_attribute(*entry) for entry in header) + b"\0"
    stack = np.stack(list(planes.values()), axis=1)  # h c w: a scanline holds one channel after the other
    blocks = []
    for row in range(0, height, _ROWS[_ZIP]):
        packed = _compress(stack[row : row + _ROWS[_ZIP]].tobytes())
        blocks.append(struct.pack("<2i", row, len(packed)) + packed)
    places = np.cumsum([len(head) + 8 * len(blocks)] + [len(block) for block in blocks[:-1]])
    return head + places.astype("<u8").tobytes() + b"".join(blocks)


def decode_exr(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Channels (float32 ``h w``, uint as uint32) and attributes of a flat scanline EXR, uncompressed, ZIPS or ZIP."""
    try:
        return _decode(data)
    except (struct.error, IndexError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"This EXR is damaged or cut short ({error}).") from error


def write_exr(path: str | os.PathLike, view: View, *, rgb_linear: Tensor | None = None, notes: Mapping[str, str] | None = None) -> Path:
    """Write the depth of a View with batch 1 as channel Z, 0 where invalid, infinite where sky, units and direction as attributes.

    ``rgb_linear`` ``h w 3`` is written to R, G, B as it is; pass ``srgb_to_linear(view.image[0])`` for an ordinary picture. The
    camera and ``notes`` become text attributes.
    """
    view = one_picture(view)
    depth = view.depth[0] if view.sky is None else view.depth[0].masked_fill(view.sky[0], math.inf)
    channels = {"Z": depth.detach().cpu().numpy()}
    if rgb_linear is not None:
        if rgb_linear.shape != (*view.depth.shape[1:], 3):
            wanted = (*view.depth.shape[1:], 3)
            raise ValueError(f"RGB of shape {tuple(rgb_linear.shape)} does not fit the depth map, wanted {wanted}.")
        channels |= {name: rgb_linear[..., index].detach().cpu().numpy() for index, name in enumerate("RGB")}
    attributes = {"depthUnits": view.units, "depthDirection": "larger = farther", "depthInvalid": 0.0}
    short = {name: text for name, text in (notes or {}).items() if len(name) <= _LONGEST_NAME}
    return write_file(path, encode_exr(channels, {**short, **attributes, **camera_to_text(view)}))


def read_exr(path: str | os.PathLike, *, units: Units | None = None, channel: str | None = None) -> View:
    """Read a depth from an EXR: the ``channel`` named, or Z, or the only one there is; ``units`` serves files without ours."""
    try:
        channels, attributes = decode_exr(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"Cannot read {path}: {error}") from error
    channel = channel or ("Z" if "Z" in channels else next(iter(channels)) if len(channels) == 1 else None)
    if channel not in channels:
        raise ValueError(f"{path} holds the channels {sorted(channels)}; pass the one with the depth as channel=.")
    return to_view(channels[channel], units=units or attributes.get("depthUnits"), path=path, **camera_from_text(attributes, path))


def _attribute(name: str, kind: str, value: bytes) -> bytes:
    return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value


def _compress(raw: bytes) -> bytes:
    """EXR's ZIP: even bytes before odd ones, each as its difference to the one before plus 128, deflated; raw if not smaller."""
    data = np.frombuffer(raw, np.uint8)
    data = np.concatenate([data[::2], data[1::2]])
    data[1:] = data[1:] - data[:-1] + np.uint8(128)
    packed = zlib.compress(data.tobytes(), 6)
    return packed if len(packed) < len(raw) else raw


def _uncompress(packed: bytes, size: int) -> bytes:
    if len(packed) == size:
        return packed
    # at most one byte more than expected: a forged block cannot fill the memory
    data = np.frombuffer(zlib.decompressobj().decompress(packed, size + 1), np.uint8).copy()
    if len(data) != size:
        raise IndexError(f"a block of {len(data)} bytes instead of {size}")
    data[1:] += np.uint8(128)
    data = np.add.accumulate(data, dtype=np.uint8)
    raw = np.empty(size, np.uint8)
    half = (size + 1) // 2
    raw[::2], raw[1::2] = data[:half], data[half:]
    return raw.tobytes()


def _decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    magic, version = struct.unpack_from("<2I", data)
    if magic != _MAGIC:
        raise ValueError("this is not an OpenEXR file.")
    for flag, kind in _UNREAD_FLAGS.items():
        if version & flag:
            raise ValueError(f"this OpenEXR file is {kind}; save it as flat scanlines.")
    raw, position = _header(data)
    compression = raw["compression"][1][0]
    if compression not in _ROWS:
        raise ValueError("this OpenEXR file is compressed by another method than ZIP; save it with ZIP or none.")
    kinds = _channel_list(raw["channels"][1])
    left, top, right, bottom = struct.unpack("<4i", raw["dataWindow"][1])
    width, height = right - left + 1, bottom - top + 1
    if width < 1 or height < 1 or not kinds:
        raise IndexError("no pixels")
    planes = {name: np.empty((height, width), kind) for name, kind in kinds.items()}
    blocks = -(-height // _ROWS[compression])
    for place in struct.unpack_from(f"<{blocks}Q", data, position):
        _read_block(data, place, planes, _ROWS[compression], top)
    readable = {"string": lambda value: value.decode(), "float": lambda value: struct.unpack("<f", value)[0]}
    attributes = {name: readable[kind](value) for name, (kind, value) in raw.items() if kind in readable}
    return {name: plane.astype(np.float32) if plane.dtype.kind == "f" else plane for name, plane in planes.items()}, attributes


def _read_block(data: bytes, place: int, planes: dict[str, np.ndarray], rows: int, top: int) -> None:
    """Fill the planes' scanlines from one block."""
    row, packed_size = struct.unpack_from("<2i", data, place)
    row -= top
    height, width = next(iter(planes.values())).shape
    rows = min(rows, height - row)
    size = rows * width * sum(plane.itemsize for plane in planes.values())
    if len(data) < place + 8 + packed_size:
        raise IndexError("the last scanlines are missing")
    block, start = _uncompress(data[place + 8 : place + 8 + packed_size], size), 0
    for line in range(row, row + rows):
        for plane in planes.values():
            plane[line] = np.frombuffer(block, plane.dtype, width, start)
            start += width * plane.itemsize


def _text(data: bytes, position: int) -> tuple[str, int]:
    end = data.find(b"\0", position)
    if end < 0:
        raise IndexError("the header has no end")
    return data[position:end].decode(), end + 1


def _header(data: bytes) -> tuple[dict[str, tuple[str, bytes]], int]:
    """Attributes by name with kind and raw value, and where the table of blocks begins."""
    found, position = {}, 8
    while data[position]:
        name, position = _text(data, position)
        kind, position = _text(data, position)
        (size,) = struct.unpack_from("<i", data, position)
        found[name] = (kind, data[position + 4 : position + 4 + size])
        position += 4 + size
    missing = {"channels", "compression", "dataWindow"} - set(found)
    if missing:
        raise IndexError(f"no {sorted(missing)} in the header")
    return found, position + 1


def _channel_list(listing: bytes) -> dict[str, np.dtype]:
    kinds, position = {}, 0
    while listing[position]:
        name, position = _text(listing, position)
        kind, _, x_sampling, y_sampling = struct.unpack_from("<4i", listing, position)
        if (x_sampling, y_sampling) != (1, 1) or kind not in _PIXELS:
            raise ValueError(f"channel {name} of this OpenEXR file is subsampled or of an unknown kind; save it as plain float.")
        kinds[name], position = _PIXELS[kind], position + 16
    return kinds
