"""The tensors of a safetensors file as views of the file mapped into memory.

The safetensors library (0.4.2 to 0.9.0rc1) reads them in the same way, but never frees the two integers of
each tensor's place in the file: 64 bytes a tensor, each time that a file is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from safetensors import safe_open
from torch import Tensor

from ..text_files import show_path
from .header import Header, WeightsError
from .int8_rows import unpack_rows

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def map_tensors(path: str | os.PathLike, header: Header) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each tensor, in the header's order; a dtype that is not in DTYPES is left to the
    safetensors library.

    The mapping is private: a tensor that is written to does not change the file.
    """
    try:
        storage = torch.UntypedStorage.from_file(os.fspath(path), False, os.path.getsize(path))
    except UnicodeEncodeError as error:
        raise WeightsError(f"Expected a file name in UTF-8, got {show_path(path)}. Rename it.") from error
    except RuntimeError as error:  # torch's type for what the system refuses
        raise OSError(str(error).splitlines()[0]) from error

    def view(span: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return torch.asarray(storage[span[0] : span[1]], dtype=torch.uint8).view(dtype)

    for name, shape in header.shapes.items():
        dtype = DTYPES.get(header.dtypes[name])
        first, last = header.byte_ranges[name]
        if name in header.scales:
            integers, scales = view((first, last), torch.int8), view(header.scales[name], torch.float32)
            yield name, unpack_rows(integers.view(shape), scales)
        elif dtype is None:
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)
        elif first == last:
            yield name, torch.empty(shape, dtype=dtype)
        else:
            yield name, view((first, last), dtype).view(shape)
