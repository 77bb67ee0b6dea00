"""The blocks of scanlines in an OpenEXR file: compression and decompression by each method.

Format: openexr.com, "OpenEXR File Layout". PXR24 drops the last 8 bits of 32-bit floats when it writes;
reading is exact.
"""

from __future__ import annotations

import zlib

import numpy as np

METHODS = ("none", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB", "HTJ2K256", "HTJ2K32")
ROWS = {"none": 1, "RLE": 1, "ZIPS": 1, "ZIP": 16, "PXR24": 16}
LEVEL = 4  # of deflate
DENSEST = 1100  # most raw bytes per packed byte: deflate's limit is 1032


class DamagedError(ValueError):
    """The bytes are not a valid EXR."""


def compress_zip(raw: np.ndarray) -> bytes:
    """EXR's ZIP of a block's bytes (uint8): even bytes before odd ones, each as its difference to the one
    before plus 128, deflated.

    Raw if that is not smaller. The level is OpenEXR's own, 4: level 6 takes up to half as long again for
    files 0 to 7 % smaller.
    """
    data = np.concatenate([raw[::2], raw[1::2]])
    differences = np.empty_like(data)
    differences[:1] = data[:1]
    np.subtract(data[1:], data[:-1], out=differences[1:])
    differences[1:] += np.uint8(128)
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL + 1)
    packed = deflate.compress(differences) + deflate.flush()
    return packed if len(packed) < len(raw) else raw.tobytes()


def uncompress(packed: bytes, method: str, width: int, rows: int, kinds: list[np.dtype]) -> bytes:
    """One block's uncompressed bytes: ``rows`` lines, channel by channel."""
    size = rows * width * sum(kind.itemsize for kind in kinds)
    if len(packed) == size:  # every method stores a block uncompressed if it would not become smaller
        return packed
    if method == "none":
        raise DamagedError(f"a block holds {len(packed)} bytes instead of {size}")
    if method == "PXR24":
        planes = _inflate(packed, rows * width * sum(map(_packed_size, kinds)))
        return _join_planes(planes, width, rows, kinds)
    return _add_differences(_repeat_runs(packed, size) if method == "RLE" else _inflate(packed, size))


def _inflate(packed: bytes, size: int) -> bytes:
    # at most one byte more than expected: a forged block cannot fill the memory
    data = zlib.decompressobj().decompress(packed, size + 1)
    if len(data) != size:
        raise DamagedError(f"a block holds {len(data)} bytes instead of {size}")
    return data


def _repeat_runs(packed: bytes, size: int) -> bytes:
    """Run lengths: a negative count is followed by that many literal bytes, another by one byte to repeat.

    The byte is repeated count + 1 times.
    """
    out, position = bytearray(), 0
    while position < len(packed) and len(out) <= size:
        count = packed[position]
        if count > 127:
            out += packed[position + 1 : position + 257 - count]
            position += 257 - count
        else:
            out += packed[position + 1 : position + 2] * (count + 1)
            position += 2
    if len(out) != size:
        raise DamagedError(f"a block holds {len(out)} bytes instead of {size}")
    return bytes(out)


def _add_differences(data: bytes) -> bytes:
    """The inverse of the predictor and interleaving that RLE and ZIP apply before packing."""
    values = np.frombuffer(data, np.uint8).copy()
    values[1:] += np.uint8(128)
    values = np.add.accumulate(values, dtype=np.uint8)
    raw = np.empty(len(values), np.uint8)
    half = (len(values) + 1) // 2
    raw[::2], raw[1::2] = values[:half], values[half:]
    return raw.tobytes()


def _packed_size(kind: np.dtype) -> int:
    """Bytes per PXR24 pixel: a float32 keeps its upper 24 bits."""
    return 3 if kind == np.dtype("<f4") else kind.itemsize


def _join_planes(data: bytes, width: int, rows: int, kinds: list[np.dtype]) -> bytes:
    """PXR24: for each line and channel the pixels' highest bytes, then the next lower ones.

    Each pixel is the difference to the previous one.
    """
    lines = np.frombuffer(data, np.uint8).reshape(rows, -1)
    out, start = [], 0
    for kind in kinds:
        count = _packed_size(kind)
        planes = lines[:, start : start + count * width].reshape(rows, count, width).astype(np.uint32)
        start += count * width
        shifts = np.uint32(8) * np.arange(count - 1, -1, -1, dtype=np.uint32)
        differences = (planes << shifts[:, None]).sum(axis=1, dtype=np.uint32)
        values = np.add.accumulate(differences, axis=1, dtype=np.uint32)
        if kind == np.dtype("<f4"):
            values <<= np.uint32(8)
        out.append(values.astype(f"<u{kind.itemsize}").view(np.uint8))
    return np.concatenate(out, axis=1).tobytes()
