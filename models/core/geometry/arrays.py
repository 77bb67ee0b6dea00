"""Arrays of any library, dtype and layout to float32 or bool tensors; everything else is a ValueError.

Text, complex numbers, objects, records and long doubles are refused with a message that names the array and
its source. Numbers beyond float32's range become infinite, as IEEE 754 casts them; infinite depth is sky.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# the integer that stands for 1 in an image
FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1}
PROBABLE = 0.5  # probabilities from this on are True, of masks and of sky
_WIDEST = 8  # bytes of a real number: long double differs from machine to machine
_ROUNDING = 1e-3  # by how much a float image may exceed [0, 1]
OVERSHOOT = 0.5  # by how much an IMAGE or a probability may: cubic resampling overshoots at edges
_WORDS = {
    "U": "text",
    "S": "text",
    "T": "text",
    "c": "complex numbers",
    "O": "objects",
    "V": "records",
    "M": "dates",
    "m": "durations",
}


class ArrayError(ValueError):
    """An array that cannot be used; one message names the array, its source and what to do."""


def as_float_tensor(array: Any, *, name: str, source: str | None = None) -> Tensor:
    """Numbers of any type and shape as float32; truth values as 0 and 1.

    Tensors stay on their device, arrays are copied.

    Masked pixels of a numpy masked array are NaN.
    """
    return _admit(array, name, source).to(torch.float32)


def as_float_map(
    array: Any, *, name: str = "depth", source: str | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """One number per pixel, as float32 (b, h, w), of (h, w), (b, h, w), (h, w, 1), (b, h, w, 1) or (b, 1, h,
    w).

    An axis of 1 can be a channel or a map one pixel wide. ``size`` (height, width) decides, if the caller
    knows it. Else ``(n, m, 1)`` is one map n x m if both are above 1, and with ``(1, m, 1)`` and ``(n, 1,
    1)`` the first axis is the batch; ``(b, 1, h, 1)`` is b maps h x 1. Four axes with the channel second are
    unambiguous for any map.
    """
    values = _admit(array, name, source)
    if values.dtype == torch.bool:
        raise ArrayError(f"Expected numbers in {_call(name, source)}, got truth values. Give them as a mask.")
    return _split_maps(values.to(torch.float32), name, source, size)


def as_mask(
    array: Any, *, name: str = "mask", source: str | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """One truth value per pixel, as bool (b, h, w); shapes as :func:`as_float_map`.

    Whole numbers are 0 and 1, or 0 and the full scale of 8 or 16 bits. Floats are probabilities, true from
    0.5 on.
    """
    given = _admit(array, name, source)
    values = _split_maps(given.to(torch.float32), name, source, size)
    low, high = _ends(values)
    if (
        not given.is_floating_point()
        and high in (255.0, 65535.0)
        and bool(((values == 0) | (values == high)).all())
    ):
        return values > 0
    slack = OVERSHOOT if given.is_floating_point() else 0
    if not (low >= -slack and high <= 1 + slack):
        expected = (
            "probabilities from 0 to 1"
            if given.is_floating_point()
            else "truth values, 0 and 1, or 0 and 255"
        )
        raise ArrayError(
            f"Expected {expected} in {_call(name, source)}, got values from {low:.6g} to {high:.6g}. Save it "
            "as bool."
        )
    return values >= PROBABLE


def as_image(
    array: Any, *, name: str = "image", source: str | None = None, overshoot: float = _ROUNDING
) -> Tensor:
    """Colors as float32 in [0, 1], in the shape of the input: 8 and 16 bits divided by their full scale,
    floats unchanged.

    Floats outside [0, 1] by up to ``overshoot`` are clamped, others refused.
    """
    given = _admit(array, name, source)
    values = given.to(torch.float32)
    if given.dtype in FULL_SCALE:
        return values / FULL_SCALE[given.dtype]
    if not given.is_floating_point():
        kind = str(given.dtype).removeprefix("torch.")
        raise ArrayError(
            f"Expected 8 or 16 bits or floats from 0 to 1 in {_call(name, source)}, got {kind}. Save it as "
            "uint8."
        )
    low, high = _ends(values)
    if math.isnan(low):
        raise ArrayError(
            f"Expected floats from 0 to 1 in {_call(name, source)}, got NaN. Check the model that made it."
        )
    if not (low >= -overshoot and high <= 1 + overshoot):
        raise ArrayError(
            f"Expected floats from 0 to 1 in {_call(name, source)}, got {low:.6g} to {high:.6g}. Divide by "
            "the full scale, or save it as uint8."
        )
    return values.clamp(0, 1) if low < 0 or high > 1 else values


def _split_maps(values: Tensor, name: str, source: str | None, size: tuple[int, int] | None) -> Tensor:
    """(b, h, w) of what :func:`as_float_map` takes."""
    shape = tuple(values.shape)
    readings = {2: [values[None]], 3: [values], 4: []}.get(values.ndim)
    if readings is None:
        raise ArrayError(
            f"Expected (h, w), (b, h, w), (b, h, w, 1) or (b, 1, h, w) in {_call(name, source)}, got "
            f"{shape}. Save one number a pixel, with the batch first."
        )
    if values.ndim == 3 and shape[2] == 1:
        # the likelier reading comes first: hardly anybody stores a batch of maps one pixel wide
        readings.insert(0 if shape[0] > 1 and shape[1] > 1 else 1, values[None, ..., 0])
    if values.ndim == 4:
        readings += [values[:, 0]] if shape[1] == 1 else []
        readings += [values[..., 0]] if shape[3] == 1 else []
        if not readings:
            raise ArrayError(
                f"Expected one channel in {_call(name, source)}, as (b, h, w, 1) or (b, 1, h, w), got "
                f"{shape}. Save one channel of it."
            )
    fitting = [
        reading for reading in readings if size is not None and tuple(reading.shape[1:]) == tuple(size)
    ]
    return (fitting or readings)[0]


def _admit(array: Any, name: str, source: str | None) -> Tensor:
    """A tensor of real numbers or truth values, in their own type, of anything that torch or numpy can
    convert.
    """
    if isinstance(array, Tensor):
        return _admit_tensor(array, name, source)
    if isinstance(array, np.ma.MaskedArray) and array.dtype.kind in "fiu":
        return torch.from_numpy(array.astype(np.float64).filled(np.nan))
    try:
        found = np.asarray(array)
    except (ValueError, TypeError) as error:  # lists of unequal lengths
        raise ArrayError(
            f"Expected numbers in {_call(name, source)}, got rows of unequal lengths. Make them equal."
        ) from error
    kind = found.dtype
    if kind.name == "bfloat16":  # ml_dtypes' type, in memory
        return torch.from_numpy(found.astype(np.float32))
    if kind.kind not in "fiub":
        word = _WORDS.get(kind.kind, "other things")
        raise ArrayError(
            f"Expected real numbers in {_call(name, source)}, got {word} ({kind}). Save it as float32."
        )
    if kind.itemsize > _WIDEST:
        raise ArrayError(
            f"Expected numbers of up to 64 bits in {_call(name, source)}, got long doubles ({kind}). Save it "
            "as float32."
        )
    # a copy in this machine's byte order and in memory order, that may be written to
    return torch.from_numpy(np.array(found, dtype=kind.newbyteorder("="), order="C", copy=True))


def _admit_tensor(tensor: Tensor, name: str, source: str | None) -> Tensor:
    wrong = {
        "complex numbers": tensor.is_complex(), "a quantized tensor": tensor.is_quantized,
        "a sparse tensor": tensor.layout != torch.strided,
    }  # fmt: skip
    for what, is_so in wrong.items():
        if is_so:
            raise ArrayError(
                f"Expected real numbers in {_call(name, source)}, got {what}. Give it as a plain float32 "
                "tensor."
            )
    return tensor


def _ends(values: Tensor) -> tuple[float, float]:
    """The lowest and the highest number, both NaN if any is; 0 and 0 of nothing."""
    if values.numel() == 0:
        return 0.0, 0.0
    low, high = values.detach().aminmax()
    return float(low), float(high)


def _call(name: str, source: str | None) -> str:
    """How a message names the array."""
    return f"the array {name!r}" if source is None else f"the array {name!r} of {source}"
