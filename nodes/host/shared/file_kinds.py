"""What kind of weights file is not ours: by our table of keys, else by core's model detection."""

from __future__ import annotations

import contextlib

import comfy.model_detection
import comfy.supported_models
import torch

from ....models.core.weights.files import KIND, Header, describe, name_keys

UNLIKE = (
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)  # what core raises for keys or shapes it only partly recognizes


def describe_file(header: Header) -> str:
    """In a few words, from the file's metadata, its keys, or core."""
    is_known = header.metadata.get(KIND) or name_keys(header.shapes) is not None
    if not is_known and (name := name_in_core(header)):
        return f"a network that ComfyUI knows as {name}"
    return describe(header)


def name_in_core(header: Header) -> str | None:
    """The class of core's model table, as `WAN21_T2V` or `QwenImage`, that core's loader would choose."""
    nothing = torch.zeros(())
    # meta tensors: shapes without memory
    state = {name: nothing.expand(shape) for name, shape in header.shapes.items()}
    for prefix in (comfy.model_detection.unet_prefix_from_state_dict(state), ""):
        with contextlib.suppress(*UNLIKE):
            config = comfy.model_detection.detect_unet_config(state, prefix, metadata=dict(header.metadata))
            kinds = [
                kind
                for kind in comfy.supported_models.models
                if config and kind.matches(config, state, unet_key_prefix=prefix)
            ]
            if kinds:
                return kinds[0].__name__
    return None
