"""The header of a safetensors file, validated whole before any tensor is read.

Other files are identified by their first bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..text_files import read_json, show_path

LARGEST_HEADER = 100_000_000  # bytes; the limit of the format
LARGEST_SIDE = 2**63  # what torch can count
METADATA = "__metadata__"
INT8 = "int8_rows"  # metadata of a file of ours whose matrices are stored in eight bits (int8_rows.py)
INT8_SCALES = ".int8_scale"  # behind a matrix's name: its scales
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

# first bytes of other files -> what they are
FOREIGN_STARTS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights themselves. Download them with `git lfs pull`",
    ),
    (b"<", "a web page, not weights. The download needs a login or another address"),
    (b"PK\x03\x04", "a PyTorch pickle (zip), which can run code when opened. Use the safetensors file"),
    (b"\x80", "a PyTorch pickle, which can run code when opened. Use the safetensors file"),
    (b"GGUF", "a GGUF file. Use the safetensors file"),
    (b"\x93NUMPY", "a NumPy array. Use the safetensors file"),
    (b"\x89HDF", "an HDF5 file. Use the safetensors file"),
    (b"\x89PNG", "a PNG image. Use the safetensors file"),
    (b"\x1f\x8b", "a gzip archive. Unpack it and use the safetensors file inside"),
    (b"7z\xbc\xaf", "a 7z archive. Unpack it and use the safetensors file inside"),
)
JSON_STARTS = (b"{", b"[", b"\xef\xbb\xbf{")
LARGEST_INDEX = 50_000_000  # bytes of JSON that are read to tell an index from another text


class WeightsError(ValueError):
    """A weights file that cannot be used.

    The message names the file, the fault and what to do.
    """


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file: everything it states before any tensor is read."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    dtypes: Mapping[str, str]  # in the format's words: F32, BF16, F8_E4M3 ...
    byte_ranges: Mapping[str, tuple[int, int]] = field(
        default_factory=dict
    )  # first byte in the file, and the one after the last
    # of matrices that are stored in eight bits, and stated here in float16: the bytes of their scales
    scales: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def read_header(path: str | os.PathLike) -> Header:
    """Names, shapes and metadata of a safetensors file; WeightsError if it is missing, damaged or not
    safetensors.

    Everything that the safetensors library would not open is refused here, with the file's name.
    """
    path = Path(path)
    shown = show_path(path)
    try:
        if not path.is_file():
            folder = path.is_dir()
            what = "a folder. Name the file inside" if folder else "no file of this name. Check the path"
            raise WeightsError(f"Expected a safetensors file at {shown}, got {what}.")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            _refuse_foreign(path, start + file.read(24), size)
            file.seek(8)
            (length,) = struct.unpack("<Q", start)
            text = file.read(length) if length <= min(size - 8, LARGEST_HEADER) else b""
    except OSError as error:
        raise WeightsError(
            f"Expected to read {shown}, got an error ({error.strerror}). Check its permissions."
        ) from error
    entries = _parse(text, shown)
    metadata = _read_metadata(entries, shown)
    spans = {name: _read_entry(name, entry, shown) for name, entry in entries.items()}
    byte_ranges = {name: (8 + length + first, 8 + length + last) for name, (first, last) in spans.items()}
    end = max((last for _, last in byte_ranges.values()), default=8 + length)
    if end != size:
        fault = "cut off" if size < end else "damaged"
        raise WeightsError(
            f"Expected {end:,} bytes in {shown}, as its header promises, got {size:,}: it is {fault}. "
            "Download it again."
        )
    _check_order(spans, shown)
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    dtypes = {name: entry["dtype"] for name, entry in entries.items()}
    return _hide_scales(Header(shapes, metadata, dtypes, byte_ranges), shown)


def _refuse_foreign(path: Path, start: bytes, size: int) -> None:
    shown = show_path(path)
    if size < 8:
        raise WeightsError(
            f"Expected a safetensors file, got {shown} of only {size} bytes: a download was probably "
            "interrupted. Download it again."
        )
    if start.lstrip().startswith(JSON_STARTS) and struct.unpack("<Q", start[:8])[0] > size:
        raise WeightsError(_name_json(path, size))
    # a safetensors file starts with its header's length: a byte of that may equal the others' first bytes,
    # the header's brace does not
    if start[8:9] == b"{":
        return
    for magic, what in FOREIGN_STARTS:
        if start.startswith(magic):
            raise WeightsError(f"Expected a safetensors file, got {shown}, which is {what}.")


def _name_json(path: Path, size: int) -> str:
    """What a JSON text instead of weights is: an index names the parts of a model that was saved in several
    files.
    """
    shown = show_path(path)
    try:
        found = read_json(path) if size <= LARGEST_INDEX else None
        parts = sorted(set(map(str, found["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (
            f"Expected a safetensors file, got {shown}, which is a JSON text: a download may have saved the "
            "server's answer. Download the safetensors file."
        )
    named = ", ".join(parts[:3]) + (" ..." if len(parts) > 3 else "")
    return (
        f"Expected a safetensors file, got {shown}, which is the index of a model saved in {len(parts)} "
        f"parts ({named}). Join the parts into one safetensors file and use that."
    )


def _parse(text: bytes, shown: str) -> dict[str, Any]:
    """The header as JSON; a name that occurs twice is refused, since one of the tensors would be lost."""
    twice: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(sorted(name for name in made if names.count(name) > 1)[:1])
        return made

    try:
        entries = json.loads(text.decode(), object_pairs_hook=build, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"Expected a safetensors file, got {shown}, which is damaged or of another kind: its header "
            "cannot be read. Download it again."
        ) from error
    if not isinstance(entries, dict):
        raise WeightsError(
            f"Expected a safetensors file, got {shown}, which is damaged or of another kind: its header "
            "cannot be read. Download it again."
        )
    if twice:
        raise WeightsError(
            f"Expected each name once in the header of {shown}, got {twice[0]!r} twice. Save the file again."
        )
    return entries


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _read_metadata(entries: dict[str, Any], shown: str) -> dict[str, str]:
    """The metadata, removed from the entries.

    The format has texts only, and its library opens no file with anything else.
    """
    metadata = entries.pop(METADATA, None)
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise WeightsError(
            f"Expected an object of texts as {METADATA} of {shown}, got {_shorten(metadata)}. Save the file "
            "again."
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise WeightsError(
                f"Expected text in the metadata entry {key!r} of {shown}, got {_shorten(value)}, with which "
                "no safetensors library opens the file. Save it again with text there, as "
                f"{json.dumps({key: json.dumps(value)})[:120]}."
            )
    return metadata


def _read_entry(name: str, entry: Any, shown: str) -> tuple[int, int]:
    """The first byte of a tensor behind the header, and the one after the last."""
    try:
        shape, dtype, (first, last) = entry["shape"], entry["dtype"], entry["data_offsets"]
        whole = isinstance(shape, list) and all(
            type(side) is int and 0 <= side < LARGEST_SIDE for side in (*shape, first, last)
        )
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or not isinstance(dtype, str):
        raise WeightsError(
            f"Expected a safetensors file, got {shown}, which is damaged or of another kind: its header "
            f"cannot be read (the entry of {name!r} is {_shorten(entry)}). Download it again."
        )
    if dtype not in BITS:
        known = ", ".join(BITS)
        raise WeightsError(
            f"Expected {name} of {shown} in one of {known}, got {_shorten(dtype)}. Save the file again in "
            "one of these."
        )
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (last - first):
        raise WeightsError(
            f"Expected {bits // 8:,} bytes for {name} of {shown}, which is {dtype} {tuple(shape)}, got "
            f"{last - first:,} in its header. The file is damaged: download it again."
        )
    return first, last


def _check_order(spans: Mapping[str, tuple[int, int]], shown: str) -> None:
    """Tensors are contiguous: no two share a byte, and none is unused."""
    end = 0
    for (first, last), name in sorted((span, name) for name, span in spans.items()):
        if first != end:
            fault = "overlaps the tensor before it" if first < end else "leaves unused bytes before it"
            raise WeightsError(
                f"Expected {name} of {shown} at byte {end:,}, got {first:,}: it {fault}. The file is "
                "damaged: download it again."
            )
        end = last


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."


def _hide_scales(header: Header, shown: str) -> Header:
    """The header as if every matrix were stored in float16; its `scales` has the bytes of their scales.

    Unchanged for a file that does not state the entry. WeightsError for a matrix whose scales do not fit.
    """
    if INT8 not in header.metadata:
        return header
    matrices = {name.removesuffix(INT8_SCALES) for name in header.shapes if name.endswith(INT8_SCALES)}
    for name in sorted(matrices):
        _check_matrix(header, name, shown)
    without = next((n for n, d in header.dtypes.items() if d == "I8" and n not in matrices), None)
    if without:
        raise WeightsError(
            f"Expected {without}{INT8_SCALES} beside {without} in {shown}, got none. Fetch the file again."
        )
    names = [name for name in header.shapes if not name.endswith(INT8_SCALES)]
    return Header(
        {name: header.shapes[name] for name in names},
        header.metadata,
        {name: "F16" if name in matrices else header.dtypes[name] for name in names},
        {name: header.byte_ranges[name] for name in names},
        {name: header.byte_ranges[name + INT8_SCALES] for name in names if name in matrices},
    )


def _check_matrix(header: Header, name: str, shown: str) -> None:
    shape, scales = header.shapes.get(name, ()), header.shapes[name + INT8_SCALES]
    stored = (header.dtypes.get(name), header.dtypes[name + INT8_SCALES])
    if stored != ("I8", "F32") or len(shape) < 2 or scales != shape[:1] or not math.prod(shape):
        raise WeightsError(
            f"Expected {name} of {shown} as an I8 matrix with one F32 scale a row, got {stored[0]} {shape} "
            f"and {stored[1]} {scales}. Fetch the file again."
        )
