"""Turns unforeseen exceptions of a node into a message with the node's inputs.

Below a node ComfyUI shows an exception's own text, and "'NoneType' object has no attribute 'shape'" does not
help a user. A refusal of ours (ValueError, OSError) is raised unchanged; so are an interruption and an
out-of-memory error, which ComfyUI reports itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
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
FORMS = {"IMAGE": ("(b, h, w, 3)", (4,)), "MASK": ("(b, h, w)", (3,)), "SIGMAS": ("(n,)", (1,))}
LATENT_FORM = "a dict with samples (b, c, h, w)"  # nested: of each stream; of a video with an axis more
LONGEST = 300  # characters of another library's error message


def with_net(node: type) -> type:
    """The same class, with the net below each method that ComfyUI asks the class for by name.

    `validate_inputs` returns the sentence, as its refusals are returned; the others raise it.
    """
    node.execute = classmethod(_net_below(node, node.execute.__func__))
    for name in ("validate_inputs", "fingerprint_inputs"):
        if name in vars(node):
            method = _net_below(node, vars(node)[name].__func__)
            setattr(node, name, classmethod(_returning(method) if name == "validate_inputs" else method))
    return node


def _net_below(node: type, run: Callable) -> Callable:
    """The class's method; what it does not foresee becomes a ValueError of one sentence.

    The schema is asked of `node`: ComfyUI calls the method on a locked copy, whose schema cannot be read.
    """

    @functools.wraps(run)
    def netted(cls, *values, **inputs):
        try:
            return run(cls, *values, **inputs)
        except UNFORESEEN as error:
            if is_memory_full(error) or (
                isinstance(error, ValueError) and not isinstance(error, UnicodeError)
            ):
                raise
            names = run.__code__.co_varnames[1 : run.__code__.co_argcount]
            said = explain_unforeseen(node.GET_SCHEMA(), dict(zip(names, values)) | inputs, error)
            raise ValueError(said) from error

    netted.__signature__ = inspect.signature(run)  # ComfyUI hands over what the signature names
    return netted


def _returning(run: Callable) -> Callable:
    """The class's method; a refusal is returned, not raised."""

    @functools.wraps(run)
    def returning(cls, *values, **inputs):
        try:
            return run(cls, *values, **inputs)
        except (ValueError, OSError) as error:
            return str(error)

    returning.__signature__ = inspect.signature(run)
    return returning


def is_memory_full(error: BaseException) -> bool:
    """An out-of-memory error, which ComfyUI answers by unloading models and a message."""
    return comfy.model_management.is_oom(error) or "can't allocate memory" in str(error)


def explain_unforeseen(schema: Any, inputs: Mapping[str, Any], error: BaseException) -> str:
    """Which node failed, how, and its inputs; if one is not of its socket's type, only that."""
    title = schema.display_name
    for put in schema.inputs:
        kinds = put.get_io_type().split(",")
        value = inputs.get(put.id)
        if schema.is_input_list and isinstance(value, list) and value:
            value = value[0]  # each link hands on a list
        if not all(kind in TYPES for kind in kinds) or (put.optional and value is None):
            continue
        forms = [_expected_form(kind, value) for kind in kinds]  # one that it has is enough
        if all(forms) or not isinstance(value, tuple(TYPES[kind] for kind in kinds)):
            expected = f"{put.get_io_type()} {' or '.join(filter(None, forms))}".strip()
            got = describe(value)
            return f"{title}: Expected {expected} at {put.id}, got {got}. Connect a node that outputs one."
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    got = "; ".join(f"{name}: {describe(value)}" for name, value in inputs.items())
    return (
        f"{title} failed for a reason that was not foreseen ({type(error).__name__}: "
        f"{text or 'no message'}). Got {got}. Check what is connected to it; the console shows the "
        "traceback."
    )


def _expected_form(kind: str, value: Any) -> str:
    """What a value of the socket's type looks like, where this one does not; else nothing."""
    if kind in FORMS and isinstance(value, torch.Tensor):
        form, axes = FORMS[kind]
        return "" if _is_sound(value, axes) else f"{form} of floats"
    if kind == "LATENT" and isinstance(value, dict):
        samples = value.get("samples")
        parts = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
        sound = all(isinstance(part, torch.Tensor) and _is_sound(part, (4, 5)) for part in parts)
        return "" if parts and sound else f"{LATENT_FORM} of floats"
    return ""


def _is_sound(value: torch.Tensor, axes: tuple[int, ...]) -> bool:
    return value.ndim in axes and value.numel() > 0 and value.is_floating_point()


def describe(value: Any) -> str:
    """A value of a socket or widget as a short text."""
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
