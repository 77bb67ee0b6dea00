"""Turns unforeseen exceptions of a node into a message with the node's inputs.

Below a node ComfyUI shows an exception's own text, and "'NoneType' object has no attribute 'shape'" does not
help a user. A refusal of ours (ValueError, OSError) is raised unchanged; so are an interruption and an
out-of-memory error, which ComfyUI reports itself.
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
LONGEST = 300  # characters of another library's error message


def with_net(node: type) -> type:
    """The same class, with a handler around its `execute`; ComfyUI looks the method up by name."""
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
    """An out-of-memory error, which ComfyUI answers by unloading models and a message."""
    return comfy.model_management.is_oom(error) or "can't allocate memory" in str(error)


def explain_unforeseen(schema: Any, inputs: Mapping[str, Any], error: BaseException) -> str:
    """Which node failed, how, and its inputs; if one is not of its socket's type, only that."""
    title = schema.display_name
    for put in schema.inputs:
        kinds = [TYPES[kind] for kind in put.io_type.split(",") if kind in TYPES]
        value = inputs.get(put.id)
        if kinds and not isinstance(value, tuple(kinds)) and not (put.optional and value is None):
            got = describe(value)
            return f"{title}: Expected {put.io_type} at {put.id}, got {got}. Connect a node that outputs one."
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    got = "; ".join(f"{name}: {describe(value)}" for name, value in inputs.items())
    return (
        f"{title} failed for a reason that was not foreseen ({type(error).__name__}: "
        f"{text or 'no message'}). Got {got}. Check what is connected to it; the console shows the "
        "traceback."
    )


def describe(value: Any) -> str:
    """A value of a socket or widget in a few text."""
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
