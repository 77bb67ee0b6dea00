"""NPZ: a whole View, batch and all, exactly; plain numpy arrays under the View's own field names, nothing pickled."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from ..geometry.view import Units, View
from .files import to_view, write_file


def encode_npz(view: View, notes: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a compressed NPZ with ``units`` as text, each present tensor of the View, and ``notes`` as texts."""
    tensors = {field.name: getattr(view, field.name) for field in fields(view) if field.name != "units"}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
    texts = {name: np.array(text) for name, text in (notes or {}).items() if name not in arrays}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, units=np.array(view.units), direction=np.array("larger = farther"), **texts, **arrays)
    return buffer.getvalue()


def write_npz(path: str | os.PathLike, view: View, *, notes: Mapping[str, str] | None = None) -> Path:
    """Write a View of any batch size; :func:`read_npz` gives it back bit for bit."""
    return write_file(path, encode_npz(view.require_valid(), notes))


def read_npz(path: str | os.PathLike, *, units: Units | None = None) -> View:
    """Read a View from an NPZ with at least ``depth``, in any layout View.from_depth takes; ``units`` serves files without."""
    data = Path(path).read_bytes()
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a bare array")
        arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an NPZ of plain arrays, or a damaged one: {error}") from error
    if "depth" not in arrays:
        raise ValueError(f"{path} holds {sorted(arrays)}, wanted an array named 'depth'.")
    units = units or (str(arrays["units"]) if "units" in arrays else None)
    names = [field.name for field in fields(View) if field.name not in ("depth", "units")]
    tensors = {name: torch.from_numpy(arrays[name]) for name in names if name in arrays}
    return to_view(arrays["depth"], units=units, path=path, **tensors)
