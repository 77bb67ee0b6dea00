"""Reading flat scanline OpenEXR files: header, channels, windows, blocks. What the numbers mean: exr.py."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from .exr_blocks import DENSEST, METHODS, ROWS, DamagedError, uncompress

MAGIC = 20000630
_VERSION = 2
_LONG_NAMES = 0x400
_FLAT = "Save it as flat scanlines with one part."
_UNREAD_FLAGS = {0x200: "tiled", 0x800: "deep", 0x1000: "multi-part"}
_PIXELS = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
_MOST_PIXELS = 1 << 27  # 16384 x 8192
_LONGEST_BLOCK = 1 << 30  # bytes

Box = tuple[int, int, int, int]  # left, top, right, bottom, all within


@dataclass(frozen=True)
class Header:
    """The header: everything before the pixels."""

    raw: dict[str, tuple[str, bytes]]  # attributes by name: kind and bytes
    channels: dict[str, np.dtype]
    method: str
    data_window: Box
    display_window: Box
    end: int  # where the table of blocks begins

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that are text or one float; one whose size does not fit its kind is left out."""
        texts = {name: decode_string(value) for name, (kind, value) in self.raw.items() if kind == "string"}
        floats = {name: value for name, (kind, value) in self.raw.items() if kind == "float"}
        numbers = {name: struct.unpack("<f", value)[0] for name, value in floats.items() if len(value) == 4}
        return texts | numbers


def decode_string(data: bytes) -> str:
    """Text as UTF-8, or else as Latin-1, which accepts all bytes and keeps different names different."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def size_of(box: Box) -> tuple[int, int]:
    """Height and width."""
    return box[3] - box[1] + 1, box[2] - box[0] + 1


def show_box(box: Box) -> str:
    return f"({box[0]}, {box[1]}) to ({box[2]}, {box[3]})"


def read_file(
    data: bytes, choose: Callable[[Collection[str]], Collection[str]]
) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and the channels that ``choose`` picks of all names.

    They are (h, w) of the display window, 0 outside the data window. Uint stays uint32, half float16.
    ValueError says in one sentence why a file cannot be read.
    """
    try:
        header = read_header(data)
        return header, _read_channels(data, header, choose(header.channels))
    except (DamagedError, struct.error, IndexError, zlib.error) as error:
        raise ValueError(
            f"Expected a whole EXR, got one that is damaged or cut short ({error}). Copy or render it again."
        ) from error


def read_header(data: bytes) -> Header:
    """Everything before the pixels, validated before any memory is allocated for them."""
    magic, version = struct.unpack_from("<2I", data)
    if magic != MAGIC:
        raise ValueError("Expected an OpenEXR file, got another kind of file. Load the EXR itself.")
    _check_version(version)
    raw, end = _read_attributes(data)
    boxes = {name: _read_box(raw, name) for name in ("dataWindow", "displayWindow") if name in raw}
    header = Header(
        raw=raw,
        channels=_read_channel_list(raw["channels"][1]),
        method=_read_method(raw["compression"][1]),
        data_window=boxes["dataWindow"],
        display_window=boxes.get("displayWindow", boxes["dataWindow"]),
        end=end,
    )
    _check_size(header, len(data))
    return header


def _check_version(version: int) -> None:
    if version & 0xFF != _VERSION:
        raise ValueError(f"Expected an EXR of version 2, got version {version & 0xFF}. Save it anew.")
    for flag, kind in _UNREAD_FLAGS.items():
        if version & flag:
            raise ValueError(f"Expected a flat scanline EXR, got one that is {kind}. {_FLAT}")
    if version & ~(0xFF | _LONG_NAMES):
        raise DamagedError(f"unknown flags {version >> 8:#x}")


def _read_attributes(data: bytes) -> tuple[dict[str, tuple[str, bytes]], int]:
    """Attributes by name with kind and raw value, and where the table of blocks begins."""
    found, position = {}, 8
    while data[position]:
        name, position = _read_name(data, position)
        kind, position = _read_name(data, position)
        (size,) = struct.unpack_from("<i", data, position)
        position += 4
        if not 0 <= size <= len(data) - position:
            raise DamagedError(f"attribute {name!r} claims {size} bytes")
        found[name] = (kind, data[position : position + size])
        position += size
    missing = {"channels", "compression", "dataWindow"} - set(found)
    if missing:
        raise DamagedError(f"no {', '.join(sorted(missing))} in the header")
    kind = decode_string(found["type"][1]) if "type" in found else "scanlineimage"
    if kind != "scanlineimage":
        raise ValueError(f"Expected a flat scanline EXR, got one of type {kind!r}. {_FLAT}")
    return found, position + 1


def _read_name(data: bytes, position: int) -> tuple[str, int]:
    end = data.find(b"\0", position)
    if end < 0:
        raise DamagedError("the header has no end")
    return decode_string(data[position:end]), end + 1


def _read_box(raw: dict[str, tuple[str, bytes]], name: str) -> Box:
    box = struct.unpack("<4i", raw[name][1])
    height, width = size_of(box)
    if height < 1 or width < 1:
        raise DamagedError(f"the {name} {show_box(box)} holds no pixels")
    if height * width > _MOST_PIXELS:
        raise ValueError(
            f"Expected at most 16384 x 8192 pixels, got a {name} of {width} x {height}. Crop it."
        )
    return box


def _read_method(value: bytes) -> str:
    if len(value) != 1:
        raise DamagedError(f"the compression is written in {len(value)} bytes")
    method = METHODS[value[0]] if value[0] < len(METHODS) else f"method {value[0]}"
    if method not in ROWS:
        raise ValueError(f"Expected compression {', '.join(ROWS)}, got {method}. Save it with ZIP, as float.")
    return method


def _read_channel_list(listing: bytes) -> dict[str, np.dtype]:
    """Channels in the order of the file, which is also their order within each line."""
    kinds, raw_names, position = {}, [], 0
    while listing[position]:
        raw_names.append(listing[position : listing.find(b"\0", position)])
        name, position = _read_name(listing, position)
        kind, _, *sampling = struct.unpack_from("<4i", listing, position)
        if sampling != [1, 1]:
            raise ValueError(
                f"Expected every pixel of each channel, got channel {name!r} subsampled. Save it without."
            )
        if kind not in _PIXELS:
            raise DamagedError(f"channel {name!r} is of an unknown kind, {kind}")
        if name in kinds:
            raise DamagedError(f"channel {name!r} is listed twice")
        kinds[name], position = _PIXELS[kind], position + 16
    if not kinds:
        raise DamagedError("no channels")
    # other readers assume this order of the channels within a line, whatever the list's
    if raw_names != sorted(raw_names):
        raise DamagedError(
            f"its channels {', '.join(map(ascii, kinds))} are not listed in alphabetical order"
        )
    return kinds


def _check_size(header: Header, length: int) -> None:
    """Refuse sizes that this many bytes cannot hold."""
    height, width = size_of(header.data_window)
    line = width * sum(kind.itemsize for kind in header.channels.values())
    if line * ROWS[header.method] > _LONGEST_BLOCK:
        raise ValueError(
            f"Expected blocks of at most 1 GiB, got {len(header.channels)} channels, {width} wide. Save "
            "depth alone."
        )
    if line * height > DENSEST * length:
        raise DamagedError(f"{width} x {height} pixels do not fit into {length} bytes")


def _read_channels(data: bytes, header: Header, names: Collection[str]) -> dict[str, np.ndarray]:
    """The named channels, cropped or extended from the data window to the display window."""
    left, top, right, bottom = header.data_window
    begin_x, begin_y, *_ = header.display_window
    height, width = size_of(header.display_window)
    # the overlap of both windows, in pixels of each
    x0, x1 = max(left, begin_x), min(right, begin_x + width - 1) + 1
    y0, y1 = max(top, begin_y), min(bottom, begin_y + height - 1) + 1
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"Expected a data window that overlaps the display window {show_box(header.display_window)}, "
            f"got {show_box(header.data_window)}. Render or crop it anew."
        )
    shown = {}
    for name, plane in _read_planes(data, header, names).items():
        if header.data_window != header.display_window:
            frame = np.zeros((height, width), plane.dtype)
            seen = plane[y0 - top : y1 - top, x0 - left : x1 - left]
            frame[y0 - begin_y : y1 - begin_y, x0 - begin_x : x1 - begin_x] = seen
            plane = frame
        shown[name] = plane
    return shown


def _read_planes(data: bytes, header: Header, names: Collection[str]) -> dict[str, np.ndarray]:
    """The named channels, in the coordinates of the data window."""
    height, width = size_of(header.data_window)
    rows, kinds = ROWS[header.method], list(header.channels.values())
    offsets = _find_blocks(data, header)
    planes = {name: np.empty((height, width), header.channels[name]) for name in names}
    for row, offset in offsets.items():
        lines = min(rows, height - row)
        (size,) = struct.unpack_from("<i", data, offset + 4)
        block = uncompress(data[offset + 8 : offset + 8 + size], header.method, width, lines, kinds)
        packed, start = np.frombuffer(block, np.uint8).reshape(lines, -1), 0
        for name, kind in header.channels.items():
            if name in planes:
                part = np.ascontiguousarray(packed[:, start : start + width * kind.itemsize])
                planes[name][row : row + lines] = part.view(kind)
            start += width * kind.itemsize
    return planes


def _find_blocks(data: bytes, header: Header) -> dict[int, int]:
    """The offset of the block of each first row, counted from the data window's top.

    DamagedError if one is missing. They are in the table; an interrupted writer leaves zeros in it, and then
    the blocks after it are scanned.
    """
    height, _ = size_of(header.data_window)
    rows = ROWS[header.method]
    count = -(-height // rows)
    table = np.array(struct.unpack_from(f"<{count}Q", data, header.end), dtype=np.uint64)
    begin = header.end + 8 * count
    sound = len(data) >= begin + 8 and bool(((table >= begin) & (table <= len(data) - 8)).all())
    found = {}
    for offset in table.tolist() if sound else _walk_blocks(data, begin):
        row, size = struct.unpack_from("<2i", data, offset)
        row -= header.data_window[1]
        if row % rows or not 0 <= row < height or not 0 <= size <= len(data) - offset - 8:
            raise DamagedError(f"a block claims row {row} of {height} and {size} bytes")
        found[row] = offset
    if len(found) < count:
        raise DamagedError(f"{count - len(found)} of {count} blocks of scanlines are missing")
    return found


def _walk_blocks(data: bytes, offset: int):
    """Offsets of consecutive blocks, up to the first incomplete one."""
    while offset + 8 <= len(data):
        (size,) = struct.unpack_from("<i", data, offset + 4)
        if not 0 < size <= len(data) - offset - 8:
            return
        yield offset
        offset += 8 + size
