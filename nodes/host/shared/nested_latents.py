"""Joint LATENTs, whose samples and masks are nested tensors: one for each stream, under core's keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import comfy.nested_tensor
import torch
from torch import Tensor

from .last_resort import describe

SIZE = "spatialweave_size"  # (height, width) before padding to whole patches
MASKS = "noise_mask"
GUIDE = "spatialweave_guide"  # (b, h, w, 3), the given image at its own size, where it was scaled


class JointSamples(comfy.nested_tensor.NestedTensor):
    """A nested tensor that says what to do, where a node of core's takes it for a plain one.

    Core's samplers, masks and VAE use what a nested tensor has; any other attribute, function of torch or
    index into the axes of one stream raises `refusal`.
    """

    def __init__(self, tensors: Iterable[Tensor], refusal: str):
        super().__init__(tensors)
        self.refusal = refusal

    def _copy(self) -> JointSamples:
        return JointSamples(self.tensors, self.refusal)

    def __getattr__(self, name: str):
        raise AttributeError(self.__dict__.get("refusal", name))

    def __getitem__(self, index):
        if isinstance(index, tuple):
            raise ValueError(self.refusal)
        return super().__getitem__(index)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise ValueError(find_refusal([*args, *(kwargs or {}).values()]))


def find_refusal(values: Iterable) -> str:
    """The refusal of the first `JointSamples` among a function's arguments, which may be lists of them."""
    nested = (item for value in values for item in (value if isinstance(value, list | tuple) else [value]))
    return next(item.refusal for item in nested if isinstance(item, JointSamples))


class JointLatent(dict):
    """A LATENT whose samples are `JointSamples`, also after core's samplers, which copy it and set them."""

    def __init__(self, latent: Mapping, refusal: str):
        super().__init__(latent)
        self.refusal = refusal
        self["samples"] = latent["samples"]

    def copy(self) -> JointLatent:
        return JointLatent(self, self.refusal)

    def __or__(self, other: Mapping) -> JointLatent:
        return JointLatent({**self, **other}, self.refusal)

    def __setitem__(self, key, value):
        if key == "samples" and getattr(value, "is_nested", False):
            value = JointSamples(value.unbind(), self.refusal)
        super().__setitem__(key, value)


def take_row(latent: dict, index: int) -> dict:
    """One row of the batch of a LATENT, plain or joint, with its masks and every other entry."""
    row, masks = slice(index, index + 1), latent.get(MASKS)
    taken = latent | {"samples": latent["samples"][row]}
    if getattr(masks, "is_nested", False):
        parts = [mask[row] if len(mask) > 1 else mask for mask in masks.unbind()]
        taken[MASKS] = comfy.nested_tensor.NestedTensor(parts)
    elif masks is not None and len(masks) > 1:
        taken[MASKS] = masks[row]
    for key in ("batch_index", GUIDE):
        if len(latent.get(key, ())) > 1:
            taken[key] = latent[key][row]
    return taken


def read_samples(latent: dict, socket: str) -> Tensor | comfy.nested_tensor.NestedTensor:
    """The samples of a LATENT, plain or nested, none of them empty; anything else is a ValueError."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    parts = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    if not parts or not all(
        isinstance(part, Tensor) and part.numel() and part.is_floating_point() for part in parts
    ):
        raise ValueError(
            f"Expected a LATENT with samples at {socket}, got {describe(latent)}. Connect a latent's node "
            "or a sampler."
        )
    return samples


def nest_masks(parts: Iterable[dict | None], streams: Sequence[Tensor]) -> dict:
    """The mask entry of a joint LATENT of (b, c, h, w) streams; {} without masks.

    A stream without one is sampled.
    """
    masks = [None if part is None else part.get(MASKS) for part in parts]
    if all(mask is None for mask in masks):
        return {}
    whole = [torch.ones(1, 1, *stream.shape[-2:], device=stream.device) for stream in streams]
    return {
        MASKS: comfy.nested_tensor.NestedTensor(
            [one if mask is None else mask for mask, one in zip(masks, whole, strict=True)]
        )
    }


def take_apart(latent: dict, streams: Sequence[Tensor]) -> list[dict]:
    """A plain LATENT per stream of a joint one, with its own mask and every other entry."""
    rest = {key: value for key, value in latent.items() if key != MASKS}
    parts, masks = [rest | {"samples": stream} for stream in streams], latent.get(MASKS)
    if getattr(masks, "is_nested", False):
        parts = [part | {MASKS: mask} for part, mask in zip(parts, masks.unbind(), strict=True)]
    return parts
