"""The content of a quantized weights file from its header: its layers, their formats, and the shapes of the
original matrices.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .files import Header, WeightsError

LAYERS = "_quantization_metadata"  # the metadata entry of core's QUANTIZATION.md
MARK = ".comfy_quant"  # the same for one layer, as JSON in a tensor of bytes: core saves models so
OLD_MARK = "scaled_fp8"  # a whole file in scaled float8, older than both
OLD_SCALES = {".scale_weight": ".weight_scale", ".scale_input": ".input_scale"}


@dataclass(frozen=True)
class Layout:
    """How core's loader finds a matrix of one format."""

    dtypes: tuple[str, ...]  # of `weight`, as safetensors names them
    scales: tuple[str, ...]  # tensors that must exist beside it
    others: tuple[str, ...] = ()  # and those that may
    columns: int = 1  # that one stored value holds


LAYOUTS = {
    "float8_e4m3fn": Layout(("F8_E4M3",), ("weight_scale",), ("input_scale",)),
    "float8_e5m2": Layout(("F8_E5M2",), ("weight_scale",), ("input_scale",)),
    "mxfp8": Layout(("F8_E4M3",), ("weight_scale",), ("input_scale",)),
    "nvfp4": Layout(
        ("U8",), ("weight_scale", "weight_scale_2"), ("input_scale", "pre_quant_scale"), columns=2
    ),
    "int8_tensorwise": Layout(("I8",), ("weight_scale",)),
    "convrot_w4a4": Layout(("I8",), ("weight_scale",), columns=2),
    "asym_w4a8_int8": Layout(
        ("I8",), ("weight_s_rel", "weight_s_channel"), ("weight_codebook",), columns=2
    ),
}


def plain_header(path: str | os.PathLike, header: Header) -> Header:
    """The header as if nothing were quantized: shapes of the original matrices, without the tensors of the
    quantization.

    A file without quantized layers is returned unchanged. WeightsError names a layer whose format, dtype or
    scales core cannot read.
    """
    layers = find_quantized_layers(path, header)
    if not layers:
        return header
    renamed = {_new_name(name): name for name in header.shapes if not name.endswith((MARK, OLD_MARK))}
    shapes = {new: header.shapes[old] for new, old in renamed.items()}
    dtypes = {new: header.dtypes[old] for new, old in renamed.items()}
    for layer, form in layers.items():
        layout = _check_layer(path, layer, form, shapes, dtypes)
        rows, columns = shapes[f"{layer}.weight"]
        shapes[f"{layer}.weight"] = (rows, columns * layout.columns)
        for part in (*layout.scales, *layout.others):
            shapes.pop(f"{layer}.{part}", None)
    return replace(header, shapes=shapes, dtypes={name: dtypes[name] for name in shapes})


def find_quantized_layers(path: str | os.PathLike, header: Header) -> dict[str, str]:
    """Layer -> the name of its format, as core would find them; empty for a file that is not quantized."""
    try:
        if LAYERS in header.metadata:
            return {
                layer: _read_format(entry)
                for layer, entry in json.loads(header.metadata[LAYERS])["layers"].items()
            }
        if any(name.endswith(OLD_MARK) for name in header.shapes):
            return {
                name.removesuffix(".scale_weight"): "float8_e4m3fn"
                for name in header.shapes
                if name.endswith(".scale_weight")
            }
        return {
            name.removesuffix(MARK): _read_mark(path, header.byte_ranges[name])
            for name in header.shapes
            if name.endswith(MARK)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"Expected {path} to state how it is quantized, got an unreadable statement ({error}). Download "
            "it again, or convert it again."
        ) from error


def _read_mark(path: str | os.PathLike, place: tuple[int, int]) -> str:
    with open(path, "rb") as file:
        file.seek(place[0])
        return _read_format(json.loads(file.read(place[1] - place[0])))


def _read_format(entry: Mapping[str, object]) -> str:
    found = entry["format"]
    if not isinstance(found, str):
        raise ValueError(f"its format is {str(found)[:60]}, which is no name")
    return found


def _new_name(name: str) -> str:
    return next((name.removesuffix(old) + new for old, new in OLD_SCALES.items() if name.endswith(old)), name)


def _check_layer(
    path: str | os.PathLike,
    layer: str,
    form: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
) -> Layout:
    layout = LAYOUTS.get(form)
    if layout is None:
        raise WeightsError(
            f"Expected layer {layer} of {path} in one of the formats {', '.join(LAYOUTS)}, got {form}. "
            "Convert the file again."
        )
    missing = [name for name in ("weight", *layout.scales) if f"{layer}.{name}" not in shapes]
    if missing:
        raise WeightsError(
            f"Expected {layer}.{missing[0]} in {path} for layer {layer} in {form}, got none. Download it "
            "again."
        )
    found, shape = dtypes[f"{layer}.weight"], shapes[f"{layer}.weight"]
    if found not in layout.dtypes or len(shape) != 2:
        raise WeightsError(
            f"Expected a matrix of {layout.dtypes[0]} as the weight of layer {layer} of {path} in {form}, "
            f"got {found} {shape}. Download it again."
        )
    return layout
