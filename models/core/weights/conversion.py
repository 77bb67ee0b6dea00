"""Converts a weights file to other precisions block by block: only a few blocks are in memory, whatever the
file's size.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import Header, WeightsError, read_header
from .quantization import FORMATS, ROWS, Format, largest_magnitude

BLOCK = 2**21  # values in memory at once, unless 128 rows have more
LAYERS = "_quantization_metadata"  # core's metadata entry that says which layers are quantized, and how
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in FLOATS.items()} | {
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}

Progress = Callable[[int, int], None]  # bytes of the source done, and in total


class Stored(NamedTuple):
    """Where a tensor lies in the file that is written."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def convert_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    plan: Mapping[str, str | torch.dtype],
    metadata: Mapping[str, str],
    on_progress: Progress = lambda done, total: None,
) -> Path:
    """Write `source` as `target`, whole or not at all.

    `plan` gives each tensor a dtype, or the name of a format of `quantization`.

    A matrix that its format does not fit becomes bfloat16. The source's metadata is kept, `metadata` added.
    WeightsError names a source that cannot be converted; an OSError is one message.
    """
    source, target = Path(source), Path(target)
    header = read_header(source)
    if target.exists():
        raise WeightsError(
            f"Expected a new file as the target, got {target}, which exists. Choose another name, or "
            "delete it first."
        )
    jobs = {name: _settle(plan[name], header, name, source) for name in header.shapes}
    layers = {
        layer_name(name): job.describe(header.shapes[name])
        for name, job in jobs.items()
        if isinstance(job, Format)
    }
    described = {LAYERS: json.dumps({"format_version": "1.0", "layers": layers})} if layers else {}
    head, layout, size = _lay_out(
        header,
        jobs,
        {key: str(value) for key, value in (header.metadata | dict(metadata) | described).items()},
    )

    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise OSError(f"it needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
        with source.open("rb") as read, part.open("wb") as written:
            written.truncate(size)
            written.write(head)
            _convert(read, written, header, jobs, layout, on_progress)
        _check_opens(part, target)
        os.replace(part, target)
    except BaseException as error:  # after Ctrl-C as well, no partial file remains
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise OSError(
                f"Cannot write {target}: {error.strerror or error}. Free some space or choose another folder."
            ) from error
        raise
    return target


def _check_opens(part: Path, target: Path) -> None:
    """The result has to be readable by other programs."""
    try:
        with safe_open(part, framework="pt"):
            pass
    except SafetensorError as error:
        raise WeightsError(
            f"Expected {target} to open as safetensors, got an error ({error}). It was not written; report "
            "this."
        ) from error


def layer_name(weight: str) -> str:
    """The layer of `layer.weight`."""
    return weight.removesuffix(".weight")


def _settle(choice: str | torch.dtype, header: Header, name: str, source: Path) -> Format | torch.dtype:
    """The format or dtype a tensor will have."""
    if header.dtypes[name] not in FLOATS:
        raise WeightsError(
            f"Expected an unquantized source, got {source} with {name} in {header.dtypes[name]}: it is "
            "quantized already. Convert the unquantized file."
        )
    if isinstance(choice, torch.dtype):
        return choice
    found, shape = FORMATS[choice], header.shapes[name]
    return found if len(shape) == 2 and name.endswith(".weight") and found.fits(shape) else torch.bfloat16


def _lay_out(
    header: Header, jobs: Mapping[str, Format | torch.dtype], metadata: dict
) -> tuple[bytes, dict[str, Stored], int]:
    """The file's first bytes, where each tensor will lie in it, and its size.

    Larger items first: every tensor is then aligned.
    """
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, job in jobs.items():
        stored = (
            job.stored(header.shapes[name]) if isinstance(job, Format) else {"": (job, header.shapes[name])}
        )
        tensors |= {
            f"{layer_name(name)}.{suffix}" if suffix else name: entry for suffix, entry in stored.items()
        }
    entries: dict[str, dict] = {"__metadata__": metadata} if metadata else {}
    layout, end = {}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        start, end = end, end + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        layout[name] = Stored(NAMES[dtype], shape, start)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return (
        head,
        {name: stored._replace(start=stored.start + len(head)) for name, stored in layout.items()},
        end + len(head),
    )


def _convert(
    read: BinaryIO,
    written: BinaryIO,
    header: Header,
    jobs: Mapping,
    layout: Mapping[str, Stored],
    on_progress: Progress,
) -> None:
    total = sum(end - start for start, end in header.byte_ranges.values())
    done = 0
    for name, job in jobs.items():
        try:
            if isinstance(job, Format):
                _quantize(read, written, header, name, job, layout)
            else:
                written.seek(layout[name].start)
                for block in _blocks(read, header, name):
                    largest_magnitude(block.to(job))
                    written.write(_bytes(block.to(job)))
        except ValueError as error:
            raise WeightsError(
                f"Expected convertible numbers in {name} of {read.name}, got a fault: {error}. The file is "
                "damaged or its training diverged; use another."
            ) from error
        start, end = header.byte_ranges[name]
        done += end - start
        on_progress(done, total)


def _quantize(
    read: BinaryIO, written: BinaryIO, header: Header, name: str, job: Format, layout: Mapping[str, Stored]
) -> None:
    largest = (
        max(map(largest_magnitude, _blocks(read, header, name)), default=0.0) if job.needs_largest else 0.0
    )
    cursors = {
        suffix: layout[f"{layer_name(name)}.{suffix}"].start for suffix in job.stored(header.shapes[name])
    }
    for block in _blocks(read, header, name):
        largest_magnitude(block)
        for suffix, values in job.quantize(block.float(), largest).items():
            written.seek(cursors[suffix])
            written.write(_bytes(values))
            if values.ndim:  # a scalar stands for all blocks
                cursors[suffix] += values.numel() * values.itemsize


def _blocks(read: BinaryIO, header: Header, name: str) -> Iterator[Tensor]:
    """A tensor of the source in blocks of whole rows, (rows, columns).

    What is not a matrix is one column.
    """
    dtype, shape = FLOATS[header.dtypes[name]], header.shapes[name]
    columns = shape[1] if len(shape) == 2 else 1
    rows = math.prod(shape) // columns if columns else 0
    step = max(BLOCK // max(columns, 1) // ROWS, 1) * ROWS
    start, _ = header.byte_ranges[name]
    for row in range(0, rows, step):
        count = min(step, rows - row) * columns
        read.seek(start + row * columns * dtype.itemsize)
        data = bytearray(count * dtype.itemsize)
        if read.readinto(data) != len(data):
            raise OSError(f"{read.name} ended early. Download it again")
        yield torch.frombuffer(data, dtype=dtype).reshape(-1, columns)


def _bytes(values: Tensor) -> memoryview:
    return memoryview(values.contiguous().reshape(-1).view(torch.uint8).numpy())
