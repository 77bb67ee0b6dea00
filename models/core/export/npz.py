"""NPZ: a whole View, batch included, lossless, as plain numpy arrays under the View's field names.

Depth Anything 3's and VGGT's own exports are read too: their camera, pose, confidence and images under their
names.
"""

from __future__ import annotations

import io
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry.arrays import as_float_tensor
from ..geometry.camera import pad_pose, upright_world
from ..geometry.view import Units, View
from ..text_files import show_path
from .files import check_direction, choose_units, read_number, to_view, write_file

_FIELDS = tuple(field.name for field in fields(View) if field.name not in ("depth", "units"))
# other programs' names of our fields, by the confidence that identifies their layout: Depth Anything 3's and
# VGGT's
_LAYOUTS = {
    "conf": {"conf": "confidence", "extrinsics": "world_to_cam"},
    "depth_conf": {
        "depth_conf": "confidence",
        "extrinsic": "world_to_cam",
        "intrinsic": "intrinsics",
        "images": "image",
    },
}
_STATED = ("units", "depth_units", "direction", "depth_direction", "depth_scale", "depth_offset")
# bytes of one array, and how many of them a byte of the file may stand for: no real map compresses that well
_BOMB = 2**30, 200
_LAST_CHARACTER = 0x10FFFF
_DAMAGES = (
    ValueError, TypeError, KeyError, OverflowError, RuntimeError, SyntaxError, EOFError, OSError, MemoryError,
    struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def encode_npz(view: View, notes: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a compressed NPZ with ``units`` as text, each present tensor of the View, and ``notes`` as
    texts.
    """
    tensors = {field.name: getattr(view, field.name) for field in fields(view) if field.name != "units"}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
    taken = {"depth", *_FIELDS, *_STATED, *_LAYOUTS}
    texts = {name: np.array(text) for name, text in (notes or {}).items() if name not in taken}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, units=np.array(view.units), direction=np.array("larger = farther"), **texts, **arrays
    )
    return buffer.getvalue()


def write_npz(path: str | os.PathLike, view: View, *, notes: Mapping[str, str] | None = None) -> Path:
    """Write a View of any batch size; :func:`read_npz` gives it back bit for bit."""
    return write_file(path, encode_npz(view.require_valid(), notes))


def read_npz(path: str | os.PathLike, *, units: Units | None = None) -> View:
    """Read a View from an NPZ with at least ``depth``, in any layout View.from_depth takes.

    ``units`` serves files without.
    """
    return load_npz(path, units=units)[0]


def load_npz(path: str | os.PathLike, *, units: Units | None = None) -> tuple[View, tuple[str, ...]]:
    """As :func:`read_npz`, with a note on the arrays that were left out.

    What the file states is applied: ``depth_scale`` and ``depth_offset`` make depths of its numbers, another
    direction or unit is refused.
    """
    source, data = show_path(path), Path(path).read_bytes()
    try:
        entries = _list_entries(data)
    except _DAMAGES as error:
        raise ValueError(_damaged(source, error)) from error
    if "depth" not in entries:
        raise ValueError(
            f"Expected an array named 'depth' in {source}, got {sorted(entries)}. Save it by this name: "
            "numpy.savez(path, depth=...)."
        )
    found = _find_fields(entries)
    try:
        arrays = {
            name: _read_entry(data, entries[name], source)
            for name in ("depth", *found, *_STATED)
            if name in entries
        }
    except _DAMAGES as error:
        raise error if isinstance(error, _NotPlain) else ValueError(_damaged(source, error)) from error
    stated = {name: _read_stated(arrays.pop(name), name, source) for name in _STATED if name in arrays}
    check_direction(_agree(stated, "direction", source), source)
    units = choose_units(_agree(stated, "units", source), units, source)
    depth = _scaled(arrays.pop("depth"), stated, source)
    if "direction" in stated and "mask" in arrays and depth.ndim == 3 and arrays["mask"].shape == depth.shape:
        depth = depth[:, None]  # our own writer's, whose maps may be one pixel wide
    if set(_LAYOUTS) & set(entries):
        # these programs write identities for an unknown camera
        found = {
            name: field
            for name, field in found.items()
            if field != "intrinsics" or not _is_identity(arrays[name])
        }
    others = {field: _of_others(name, field, arrays[name], source) for name, field in found.items()}
    return to_view(depth, units=units, path=path, **others), _name_left_out(entries, found, source)


@dataclass(frozen=True)
class _Entry:
    """One array of the archive by its header."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


class _NotPlain(ValueError):
    """An array that cannot be read as plain numbers; the message is complete."""


def _list_entries(data: bytes) -> dict[str, _Entry]:
    """The arrays of an archive by name, their numbers unread."""
    if data[:6] == b"\x93NUMPY":
        raise ValueError("it is a bare array (.npy); save it by numpy.savez(path, depth=array)")
    entries = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy") and not info.filename.startswith("__MACOSX/"):
                with archive.open(info) as file:
                    entries[info.filename.removesuffix(".npy")] = _Entry(
                        info, *_read_header(file), file.tell()
                    )
    return entries


def _read_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"one of its arrays is of the format {version[0]}.{version[1]}")


def _read_entry(data: bytes, entry: _Entry, source: str) -> np.ndarray:
    """The numbers of one array, whose count must match its header and whose compression must be plausible."""
    name, size = entry.info.filename.removesuffix(".npy"), entry.size
    if entry.dtype.hasobject:
        raise _NotPlain(
            f"Expected an NPZ of plain arrays, got {source} with pickled objects in the array {name!r}. "
            "Save it as float32."
        )
    most, ratio = _BOMB
    if max(size, entry.info.file_size) > max(most, ratio * entry.info.compress_size):
        raise _NotPlain(
            f"Expected a depth in {source}, got {max(size, entry.info.file_size):.3g} bytes of {name!r} "
            f"packed into {entry.info.compress_size}. It is damaged or forged: write it anew."
        )
    if min(entry.shape, default=1) < 0 or size != entry.info.file_size - entry.start:
        raise ValueError(f"the array {name!r} of {size} bytes holds {entry.info.file_size - entry.start}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(entry.info) as file:
        raw = file.read()[entry.start :]
    if entry.dtype.itemsize == 0:
        return np.zeros(entry.shape, entry.dtype)
    return np.frombuffer(raw, entry.dtype).reshape(entry.shape, order="F" if entry.fortran else "C")


def _find_fields(entries: Mapping[str, _Entry]) -> dict[str, str]:
    """Which arrays are fields of the View: name in the file to name of the field.

    Our own names take precedence over the others'.
    """
    found = {name: name for name in _FIELDS if name in entries}
    for sign, names in _LAYOUTS.items():
        if sign in entries:
            found |= {
                name: field
                for name, field in names.items()
                if name in entries and field not in found.values()
            }
    return found


def _is_identity(matrices: np.ndarray) -> bool:
    return matrices.shape[-2:] == (3, 3) and bool((matrices == np.eye(3)).all())


def _of_others(name: str, field: str, array: np.ndarray, source: str) -> Any:
    """An array of another program as ours: images with the channel last, poses in a world that is y up."""
    if field == "image" and array.ndim >= 3 and array.shape[-3] == 3 and array.shape[-1] not in (3, 4):
        return np.moveaxis(array, -3, -1)
    if field == "world_to_cam" and name != field:
        pose = pad_pose(as_float_tensor(array, name=name, source=source))
        return upright_world(pose) if pose.shape[-2:] == (4, 4) else pose
    return array


def _read_stated(array: np.ndarray, name: str, source: str) -> str | float:
    """What the file states of its depth: a number for scale and offset, else a text."""
    if array.dtype.kind == "U":
        codes = np.frombuffer(array.tobytes(), np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if bool((codes > _LAST_CHARACTER).any()):  # Python cannot decode such a text
            raise ValueError(
                f"Expected text as {name!r} in {source}, got characters that are none. It is damaged: write "
                "it anew."
            )
    one = array.reshape(-1)[0] if array.size == 1 else array
    if name in ("depth_scale", "depth_offset"):
        return read_number(
            one.item() if array.size == 1 else one, name, source, above_zero=name == "depth_scale"
        )
    if array.size != 1 or array.dtype.kind not in "US":
        raise ValueError(
            f"Expected text as {name!r} in {source}, got {array.dtype} {array.shape}. Correct or remove it."
        )
    return one.decode("utf-8", "backslashreplace") if isinstance(one, bytes) else str(one)


def _agree(stated: Mapping[str, Any], name: str, source: str) -> Any:
    """The statement under this name or with depth_ before it; two that differ are refused."""
    values = {stated[key] for key in (name, f"depth_{name}") if key in stated}
    if len(values) > 1:
        raise ValueError(f"Expected one {name} in {source}, got {sorted(values)}. Remove what is wrong.")
    return next(iter(values), None)


def _scaled(values: np.ndarray, stated: Mapping[str, Any], source: str) -> np.ndarray:
    """Depths of stored integers, as our PNG states them; 0 stays 0, which is invalid."""
    if not {"depth_scale", "depth_offset"} & set(stated):
        return values
    values = as_float_tensor(values, name="depth", source=source).double().numpy()
    return np.where(
        values == 0, 0.0, values * stated.get("depth_scale", 1.0) + stated.get("depth_offset", 0.0)
    )


def _name_left_out(entries: Mapping[str, _Entry], found: Mapping[str, str], source: str) -> tuple[str, ...]:
    """One sentence on the arrays that no field of a View stores; texts are notes."""
    rest = {
        name: entry
        for name, entry in entries.items()
        if name not in ("depth", *found, *_STATED) and entry.dtype.kind not in "US"
    }
    if not rest:
        return ()
    listed = ", ".join(f"{name} ({entry.dtype} {entry.shape})" for name, entry in sorted(rest.items()))
    return (f"Of {source}, these arrays are not read: {listed}.",)


def _damaged(source: str, error: BaseException) -> str:
    reason = error or type(error).__name__
    fault = f"Expected an NPZ of plain arrays, got {source}, which is none, or a damaged one: {reason}"
    return f"{fault}. Write it anew by numpy.savez."
