"""The masks of a joint LATENT and of its plain parts: one for each stream, under core's key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import comfy.nested_tensor
import torch
from torch import Tensor

from .last_resort import describe

SIZE = "spatialweave_size"  # (height, width) before padding to whole patches
MASKS = "noise_mask"


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
