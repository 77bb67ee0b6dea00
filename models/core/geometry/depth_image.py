"""Depth stored as an image: the caller states what its values mean, because no image does."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .arrays import FULL_SCALE, OVERSHOOT, as_image, as_mask
from .camera import intrinsics_from_fov
from .view import Units, View, explain_invalid

# how gray values encode depth: directly, or between the depths `near` and `far`
Meaning = Literal["depth as it is", "white is far", "white is near", "white is near, disparity"]


def view_from_image(
    image: Tensor,
    *,
    meaning: Meaning,
    units: Units,
    near: float = 1.0,
    far: float = 10.0,
    mask: Tensor | None = None,
    picture: Tensor | None = None,
    fov_degrees: float | None = None,
) -> tuple[View, str | None]:
    """The View of a gray depth image (b, h, w, c) (c = 1, 3, or 4 with alpha), and one sentence on its
    invalid pixels or None.

    "depth as it is" takes the values as depths, above 1 too. "white is far" and "white is near" run from 0 to
    1 linearly in depth between ``near`` and ``far``; "white is near, disparity" linearly in 1 / depth, and
    only there may ``far`` be infinite: black is sky then. Transparent pixels, and those outside ``mask`` (b,
    h, w) (True = valid), are invalid. ``picture`` (b, h, w, 3) is stored as the View's image; ``fov_degrees``
    is the horizontal field of view, None if unknown.
    """
    if meaning not in get_args(Meaning):
        raise ValueError(f"Expected a meaning of {get_args(Meaning)}, got {meaning!r}. Choose one of these.")
    gray, opaque = _gray(image)
    if meaning != "depth as it is":
        gray = _in_range(gray / FULL_SCALE.get(image.dtype, 1))
    depth = gray if meaning == "depth as it is" else _scaled(gray, meaning, near, far)
    valid = opaque if mask is None else _and(opaque, mask)
    if picture is not None and (picture.ndim != 4 or picture.shape[-1] not in (1, 3, 4)):
        raise ValueError(
            f"Expected an image (batch, height, width, 3), got {tuple(picture.shape)}. Connect an IMAGE."
        )
    others = {
        "image": None if picture is None else as_image(picture[..., :3], name="picture", overshoot=OVERSHOOT)
    }
    if fov_degrees is not None:
        height, width = depth.shape[-2:]
        others["intrinsics"] = intrinsics_from_fov(fov_degrees, width, height)
    view = View.from_depth(depth[:, None], units=units, mask=valid, **others)
    return view, explain_invalid(
        depth.expand_as(view.depth), None if valid is None else valid.expand_as(view.mask)
    )


def _gray(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """The one channel (b, h, w) of a gray image, and where it is opaque."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"Expected a depth image (b, h, w, c) with c = 1, 3 or 4, got {tuple(image.shape)}. Connect an "
            "IMAGE."
        )
    if image.is_complex():
        raise ValueError(
            f"Expected a depth image of real numbers, got {str(image.dtype).removeprefix('torch.')}. Give "
            "its real part."
        )
    full, image = FULL_SCALE.get(image.dtype, 1), image.float()
    colors = image[..., :3] / full
    finite = colors.isfinite().all(dim=-1)
    # a few steps of 8 bits: compressed gray is not exactly gray
    if bool(((colors.amax(-1) - colors.amin(-1))[finite] > 2.5 / 255).any()):
        raise ValueError(
            "Expected a gray depth image, got a colored one. A color map cannot be inverted here: load the "
            "depth itself."
        )
    return image[..., 0], image[..., 3] > 0 if image.shape[-1] == 4 else None


def _in_range(gray: Tensor) -> Tensor:
    """Gray values in [0, 1], unless they are depths.

    Slightly outside is clamped; more has another meaning and is refused.
    """
    known = gray[gray.isfinite()]
    low, high = (float(known.min()), float(known.max())) if known.numel() else (0.0, 0.0)
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(
            f"Expected gray values from 0 to 1 in the depth image, got {low:.6g} to {high:.6g}. Choose "
            "'depth as it is' if they are depths, else divide them by their full scale."
        )
    return torch.where(gray.isfinite(), gray.clamp(0, 1), gray)


def _scaled(gray: Tensor, meaning: Meaning, near: float, far: float) -> Tensor:
    if not 0 <= near < far:
        raise ValueError(
            f"Expected depths 0 <= near < far, got {near:g} (near) and {far:g} (far). Correct them."
        )
    if meaning == "white is near, disparity":
        if near == 0:
            raise ValueError("Expected near above 0, got 0, where disparity is infinite. Raise near.")
        return 1 / torch.lerp(torch.tensor(1 / far), torch.tensor(1 / near), gray)
    if math.isinf(far):
        raise ValueError(
            "Expected a finite far, got infinity, which a scale linear in depth never reaches. Choose "
            "disparity."
        )
    return torch.lerp(
        *(torch.tensor(end) for end in ((near, far) if meaning == "white is far" else (far, near))), gray
    )


def _and(opaque: Tensor | None, mask: Tensor) -> Tensor:
    """Both masks combined; a batch of 1 broadcasts."""
    mask = as_mask(mask)
    if opaque is None:
        return mask
    if opaque.shape[1:] != mask.shape[1:] or (len(opaque) != len(mask) and 1 not in (len(opaque), len(mask))):
        raise ValueError(
            f"Expected a mask for a depth image {tuple(opaque.shape)}, got {tuple(mask.shape)}. Give one "
            "each, or one for all."
        )
    return opaque & mask
