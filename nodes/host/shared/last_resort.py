"""The last resort under every node: what nobody foresaw becomes a sentence with the inputs that had arrived.

Below a node ComfyUI shows an exception's own words, and "'NoneType' object has no attribute 'shape'" tells a
user nothing. A refusal of ours (ValueError, OSError) stays as it is; so do an interruption and a full memory,
for which ComfyUI has words of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

from ....models.core.geometry.view import View

UNFORESEEN = (
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    UnicodeError,
)
TYPES = {  # of what a socket carries
    "IMAGE": torch.Tensor, "MASK": torch.Tensor, "SIGMAS": torch.Tensor,
    "LATENT": dict, "SPATIALWEAVE_VIEW": View,
    "MOGE_GEOMETRY": Mapping, "DA3_GEOMETRY": Mapping, "MODEL": comfy.model_patcher.ModelPatcher,
}  # fmt: skip
LONGEST = 300  # characters of a foreign error's words


def with_net(node: type) -> type:
    """The same class, with the net below its `execute`; ComfyUI asks the class for it by name."""
    run = node.execute.__func__

    @functools.wraps(run)
    def execute(cls, *values, **inputs):
        try:
            return run(cls, *values, **inputs)
        except UNFORESEEN as error:
            if is_memory_full(error) or (
                isinstance(error, ValueError) and not isinstance(error, UnicodeError)
            ):
                raise
            names = run.__code__.co_varnames[1 : run.__code__.co_argcount]
            raise ValueError(
                explain_unforeseen(cls.GET_SCHEMA(), dict(zip(names, values)) | inputs, error)
            ) from error

    node.execute = classmethod(execute)
    return node


def is_memory_full(error: BaseException) -> bool:
    """What ComfyUI answers by unloading models and a word on the memory."""
    return comfy.model_management.is_oom(error) or "can't allocate memory" in str(error)


def explain_unforeseen(schema: Any, inputs: Mapping[str, Any], error: BaseException) -> str:
    """Which node failed, how, and its inputs; if one is not of its socket's type, only that."""
    title = schema.display_name
    for put in schema.inputs:
        kinds = [TYPES[kind] for kind in put.io_type.split(",") if kind in TYPES]
        value = inputs.get(put.id)
        if kinds and not isinstance(value, tuple(kinds)) and not (put.optional and value is None):
            got = describe(value)
            return f"{title}: Expected {put.io_type} at {put.id}, got {got}. Wire a node that gives one."
    words = " ".join(str(error).split())
    words = words if len(words) <= LONGEST else f"{words[:LONGEST]}..."
    got = "; ".join(f"{name}: {describe(value)}" for name, value in inputs.items())
    return (
        f"{title} cannot work with what arrived, for a reason that was not foreseen ({type(error).__name__}: "
        f"{words or 'no words'}). Got {got}. Check what is wired to it; the console shows the trace."
    )


def describe(value: Any) -> str:
    """A value of a socket or widget in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if getattr(value, "is_nested", False):
        return "nested " + " and ".join(map(describe, value.unbind()))
    if isinstance(value, View):
        return value.describe()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {describe(part)}" for key, part in value.items()) + "}"
    if isinstance(value, bool | int | float | str):
        return repr(value)[:80]
    return type(value).__name__
