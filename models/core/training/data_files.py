"""Validation of a dataset folder's manifest and loose files: lines, names, depth, label images, sizes.

The format is described in `data.py`. Every error is one message; of the manifest's lines it names the line,
of files the file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..export.files import check_direction, choose_units, read_number
from ..export.png16 import find_sidecar
from ..geometry.arrays import as_float_map, as_mask
from ..picture_files import open_values
from ..pictures import open_labels
from ..text_files import read_json, read_json_lines, show_path

MANIFEST = "manifest.jsonl"
FILES = ("image", "depth", "mask", "normals", "segmentation", "line")  # keys of a loose line that name files
SKY, SKY_LABEL = -1, 255  # in the segmentation of a shard, and of an 8-bit image
LARGEST_SCALE = 1e25  # times the largest of 32 bits still a float32
SCALE, OFFSET = "depth_scale", "depth_offset"  # as a line, a PNG's text or an NPZ states them


def read_manifest(folder: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Every line of the folder's manifest, validated, with its caption as text.

    And the lines' numbers in the file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"Expected a dataset folder with {MANIFEST}, got {show_path(folder)} without it. Choose "
            "another folder."
        )
    entries, numbers = [], []
    for number, entry in read_json_lines(path):
        entries.append(check_line(entry, f"line {number} of {show_path(path)}"))
        numbers.append(number)
    if not entries:
        raise ValueError(
            f"Expected at least one sample in {show_path(path)}, got an empty file. Add samples."
        )
    lost = sorted(
        name for name in {e["shard"] for e in entries if "shard" in e} if not (folder / name).is_file()
    )
    if lost:
        raise ValueError(
            f"Expected the shards that {show_path(path)} names, got none of these: {', '.join(lost)}. Put "
            "them back."
        )
    return entries, numbers


def check_line(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The line without its null entries for files, and with a null caption as "".

    `where` is how a message names it.
    """
    entry = {
        key: value
        for key, value in entry.items()
        if value is not None or key not in (*FILES, "shard", "captions", SCALE)
    }
    if "shard" in entry:
        check_name(entry["shard"], "shard", where)
        row = entry.get("row")
        if not isinstance(row, int) or isinstance(row, bool) or row < 0:
            raise ValueError(
                f'Expected a "row" of 0 or more in {where}, got {row!r}. Count the rows of the shard from 0.'
            )
    elif not {"image", "depth"} & entry.keys():
        raise ValueError(
            f'Expected "shard" and "row", or "image" and "depth" files, in {where}, '
            f'got {sorted(entry)}. Name a sample.'
        )
    else:
        for key in FILES:
            if key in entry:
                check_name(entry[key], key, where)
        if SCALE in entry and not is_scale(entry[SCALE]):
            raise ValueError(
                f'Expected a number above 0 as "{SCALE}" in {where}, got {entry[SCALE]!r}. '
                "Write it without quotes."
            )
    return {**entry, "caption": check_caption(entry.get("caption"), where), **check_captions(entry, where)}


def check_caption(text: Any, where: str) -> str:
    """A caption as text that can be encoded; null is ""."""
    if not isinstance(text, (str, type(None))):
        raise ValueError(
            f'Expected text as "caption" in {where}, got {text!r}. Write one string, or leave it out.'
        )
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'Expected a "caption" of whole characters in {where}, got half of a surrogate pair. Correct it.'
        ) from error
    return text or ""


def check_captions(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Several captions of one sample, where a line has them."""
    if "captions" not in entry:
        return {}
    if not isinstance(entry["captions"], list):
        raise ValueError(
            f'Expected a list of texts as "captions" in {where}, got {entry["captions"]!r}. '
            'Use "caption" for one.'
        )
    return {"captions": [check_caption(text, where) for text in entry["captions"]]}


def check_name(name: Any, key: str, where: str) -> None:
    """The name of a file inside the folder, by the rules of either system."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(
            f'Expected the name of a file as "{key}" in {where}, got {name!r}. '
            "Write it relative to the folder."
        )
    if (
        PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).anchor
        or ".." in PureWindowsPath(name).parts
    ):
        raise ValueError(
            f'Expected "{key}" in {where} relative to the folder and inside it, got {name!r}. '
            "Move the file there."
        )


def is_scale(value: Any) -> bool:
    """A number above 0 that keeps every depth within float32, and no truth value."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= LARGEST_SCALE
    except OverflowError:  # an integer larger than any float
        return False


def read_sample_depth(path: Path, scale: float | None) -> Tensor:
    """A loose depth file as float32 (h, w) metres, NaN where the file marks it as unknown."""
    name = show_path(path)
    read = {".npy": read_depth_npy, ".npz": read_depth_npz}.get(path.suffix.lower(), read_depth_picture)
    values, known, stated, offset = read(path, name)
    if scale is not None and stated is not None and (offset or not math.isclose(scale, stated, rel_tol=1e-6)):
        raise ValueError(
            f"Expected one scale for {name}, got {SCALE} {scale:g} in the line, and in the file {SCALE} "
            f"{stated:g} with {OFFSET} {offset:g}. Take one of them out."
        )
    factor = stated if scale is None else scale
    if factor is None and values.dtype.kind in "iu":
        raise ValueError(
            f'Expected "{SCALE}" in the line, as {name} holds whole numbers of 16 bits, got none. '
            "Write metres per step."
        )
    metres = (values.astype(np.float64) * (1.0 if factor is None else factor) + offset).astype(np.float32)
    return torch.from_numpy(metres if known is None else np.where(known, metres, np.float32(np.nan)))


# values (h, w), where they are known, scale and offset as the file states them
Stated = tuple[np.ndarray, Any, "float | None", float]


def read_depth_npy(path: Path, name: str) -> Stated:
    return one_map(load_arrays(path, name), name, "depth"), None, None, 0.0


def read_depth_npz(path: Path, name: str) -> Stated:
    """The array `depth`, or the only one.

    Of its other arrays, mask, depth_scale, depth_offset and direction are used.
    """
    arrays = load_arrays(path, name)
    if "depth" not in arrays and len(arrays) != 1:
        raise ValueError(
            f"Expected an array 'depth' in {name}, got {', '.join(sorted(arrays)) or 'none'}. Save it under "
            "that name."
        )
    key = "depth" if "depth" in arrays else next(iter(arrays))
    depth = one_map(arrays[key], name, key)
    known = None
    if "mask" in arrays:
        known = as_mask(arrays["mask"], name="mask", source=name, size=depth.shape).numpy()
        if known.shape != (1, *depth.shape):
            raise ValueError(
                f"Expected a mask of {depth.shape} in {name}, got {known.shape[1:]}. Save it at the depth's "
                "size."
            )
        known = known[0]
    plain = {f"depth_{key}": arrays[key] for key in ("direction", "units") if key in arrays}
    scale, offset = stated_scale({**arrays, **plain}, name)
    return depth, known, scale, offset


def read_depth_picture(path: Path, name: str) -> Stated:
    """One gray channel of 16 or 32 bits or floats; 0 and what tRNS declares transparent are unknown.

    A PNG's text, or else the JSON beside it, may state the scale.
    """
    found = open_values(path)
    values = found.values
    if values.ndim != 2 or values.dtype == np.uint8:
        kind = "is a color image" if values.ndim != 2 else "has 8 bits"
        raise ValueError(
            f"Expected depth as one gray channel of 16 bits, got {name}, which {kind} (mode {found.mode}). "
            "Save a 16-bit PNG."
        )
    if values.dtype == np.int32 and values.min() < 0:
        raise ValueError(
            f"Expected depth of at least 0 in {name}, got {values.min()}. Save it as unsigned 16-bit PNG, or "
            "as .npy."
        )
    beside, beside_name = read_sidecar(path)
    scale, offset = stated_scale(found.text, name, text=True)
    if scale is None:
        scale, offset = stated_scale(beside, beside_name)
    known = None if found.alpha is None else found.alpha > 0
    if offset:
        known = (values > 0) if known is None else known & (values > 0)
    return values, known, scale, offset


def stated_scale(facts: Mapping[str, Any], name: str, *, text: bool = False) -> tuple[float | None, float]:
    """depth_scale and depth_offset of a file's own text, arrays or JSON; a unit other than the meter and
    another direction are refused.
    """
    facts = {
        key: value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
        for key, value in facts.items()
    }
    check_direction(facts.get("depth_direction"), name)
    choose_units(facts.get("depth_units"), None, name)
    scale = read_number(facts[SCALE], SCALE, name, above_zero=True, text=text) if SCALE in facts else None
    return scale, read_number(facts[OFFSET], OFFSET, name, text=text) if OFFSET in facts else 0.0


def read_sidecar(path: Path) -> tuple[Mapping[str, Any], str]:
    """The JSON beside a depth image, if it describes a depth, and its name."""
    beside = find_sidecar(path)
    stated = read_json(beside) if beside.is_file() else None
    return (stated if isinstance(stated, dict) and SCALE in stated else {}), show_path(beside)


def load_arrays(path: Path, name: str) -> Any:
    """The array of an .npy, or those of an .npz by name; nothing pickled."""
    try:
        loaded = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        is_archive = not isinstance(loaded, np.ndarray)
        found = {key: loaded[key] for key in loaded.files} if is_archive else loaded
    except OSError as error:
        raise ValueError(
            f"Expected depth in {name}, got an error of the system ({error.strerror or error}). Check the "
            "path."
        ) from error
    # numpy raises almost any exception on a damaged file
    except Exception as error:
        raise ValueError(
            f"Expected an .npy or .npz of plain numbers in {name}, got {error or 'a damaged one'}. Save it "
            "anew."
        ) from error
    if is_archive != (path.suffix.lower() == ".npz"):
        raise ValueError(
            f"Expected {path.suffix} in {name}, got {'an archive' if is_archive else 'a bare array'}. Rename "
            "it."
        )
    return found


def one_map(array: Any, name: str, key: str) -> np.ndarray:
    """float32 (h, w) of one map in any layout that `as_float_map` takes."""
    depth = as_float_map(array, name=key, source=name)
    if len(depth) != 1 or 0 in depth.shape:
        raise ValueError(
            f"Expected one depth map in {name}, got {len(depth)} of {tuple(depth.shape[1:])}. Save one a "
            "file."
        )
    return depth[0].numpy()


def read_segmentation(source: Any, *, name: Any = None) -> Tensor:
    """A loose segmentation as int32 (h, w): 0 = no mask, and of an image with 8 bits 255 as -1, sky.

    A palette image counts by its indices.
    """
    labels, bits = open_labels(source, name=name)
    return labels.masked_fill(labels == SKY_LABEL, SKY) if bits == 8 else labels


def check_sample_sizes(maps: Mapping[str, Tensor], names: Sequence[str] = FILES) -> None:
    """Refuse maps of one sample ((h, w), or (h, w, c)) of different aspect ratios, beyond a pixel of
    rounding.

    An image at twice the depth's size is accepted. A mask has the depth's own size.
    """
    sizes = {name: tuple(maps[name].shape[:2]) for name in names if name in maps}
    if not sizes:
        return
    largest = max(sizes, key=lambda name: sizes[name][0] * sizes[name][1])
    height, width = sizes[largest]
    for name, (h, w) in sizes.items():
        if abs(h * width - height * w) > max(height, width):
            raise ValueError(
                f"Expected {largest} and {name} of one shape, got {width} x {height} and {w} x {h} pixels "
                "(width x height). Crop or turn them alike."
            )
    if "mask" in sizes and "depth" in sizes and sizes["mask"] != sizes["depth"]:
        (h, w), (height, width) = sizes["mask"], sizes["depth"]
        raise ValueError(
            f"Expected a mask of the depth's {width} x {height} pixels, got {w} x {h}. Save it at that size."
        )


# of a shard's row: number of axes, and the allowed types
FORMS: Mapping[str, tuple[tuple[int | None, ...], tuple[torch.dtype, ...]]] = {
    "image": ((None, None, 3), (torch.uint8,)),
    "depth": ((None, None), (torch.float16, torch.float32, torch.bfloat16, torch.float64)),
    "mask": ((None, None), (torch.bool, torch.uint8)),
    "normals": ((None, None, 3), (torch.int8, torch.float16, torch.float32, torch.bfloat16, torch.float64)),
    "segmentation": ((None, None), (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)),
}


def check_forms(row: Mapping[str, Tensor], shard: str) -> None:
    """Refuse a shard's row in which a map has another type or shape than the format states."""
    for name, (axes, types) in FORMS.items():
        if name not in row:
            continue
        shape, dtype = tuple(row[name].shape), row[name].dtype
        fits = (
            len(shape) == len(axes)
            and all(length in (None, side) for length, side in zip(axes, shape, strict=True))
            and 0 not in shape
        )
        if not fits or dtype not in types:
            expected = " or ".join(str(each) for each in types) + (
                " (height, width, 3)" if len(axes) == 3 else " (height, width)"
            )
            message = f"Expected {name} as {expected} in {shard}, got {dtype} {shape}. Write the shard anew."
            raise ValueError(message.replace("torch.", ""))
