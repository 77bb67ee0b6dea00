"""An edited image resized to the input's size, with the input's own pixels outside the edited region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from .alignment import Registration, measure_alignment
from .framing import Framing, fit_images, uncovered_mask, unfit_images

THRESHOLD = 0.1  # default change of a color channel, of 1, above which a pixel counts as edited
SMOOTHED = 2.0  # standard deviation in bucket pixels of the blur before the comparison, against VAE noise
SPECK = 3  # bucket pixels of a binary opening: smaller regions are ignored
GROWN = 8  # bucket pixels of dilation of the changed region: the threshold cuts off its soft rim


@dataclass(frozen=True)
class FramedImage:
    """What Joy: Fit hands to Joy: Restore: the image as it was, (1, h, w, 3) in [0, 1], and its framing."""

    image: Tensor
    framing: Framing


@dataclass(frozen=True)
class Restored:
    """An edited image at the input's size."""

    image: Tensor  # (1, h, w, 3)
    edited: Tensor  # (h, w): share of the edited image in each pixel, 0 where the input is kept bit for bit
    uncovered: Tensor  # (h, w) bool: cropped away before the edit, so taken from the input
    alignment: Registration
    whole: bool  # nothing was put back, so the alignment counts the edit, too

    def describe(self) -> str:
        """Summary, a sentence a line."""
        height, width = self.edited.shape
        kept = (self.edited == 0).float().mean().item()
        lines = [
            f"Restored to {width} x {height} (width x height).",
            f"{100 * kept:.1f}% of the pixels are the input's, bit for bit.",
            self.alignment.describe() + (" Measured on all, the edit included." if self.whole else ""),
        ]
        if self.uncovered.any():
            share = self.uncovered.float().mean().item()
            lines.append(f"{100 * share:.1f}% were cropped away before the edit: there it is the input.")
        return "\n".join(lines)


def restore_image(edited: Tensor, framed: FramedImage, mask: Tensor | None, feather: int) -> Restored:
    """The edited image (1, h, w, 3) of the bucket's size inside `mask` (h, w) in [0, 1], the input outside.

    Without a mask the whole edited image is used, and the alignment is that of the whole. The seam of
    `feather` pixels lies inside the mask.
    """
    source, framing = framed.image, framed.framing
    left, top, right, bottom = framing.taken
    back = source.clone()
    back[:, top:bottom, left:right] = unfit_images(edited[..., :3].to(source), framing)
    uncovered = uncovered_mask(framing)
    if mask is None:
        measured = measure_alignment(source[0], back[0], uncovered)
        return Restored(back, (~uncovered).to(source), uncovered, measured, True)
    share = soften(mask, feather).to(source)
    share[uncovered] = 0.0
    measured = measure_alignment(source[0], back[0], uncovered | (share > 0))
    return Restored(_blend(source, back, share), share, uncovered, measured, False)


def _blend(source: Tensor, back: Tensor, share: Tensor) -> Tensor:
    """`back` by its share (h, w), `source` bit for bit where the share is 0; both (1, h, w, 3)."""
    image = source.clone()
    for window in ndimage.find_objects((share > 0).numpy().astype(np.int8)):
        part = share[window][..., None]
        mixed = torch.where(part < 1, source[0][window].lerp(back[0][window], part), back[0][window])
        image[0][window] = torch.where(part > 0, mixed, source[0][window])
    return image


def require_framed(framed: Sequence[Any], count: int) -> list[FramedImage]:
    """One framing per image, or a ValueError; a single one serves all."""
    for one in framed:
        if not isinstance(one, FramedImage):
            raise ValueError(
                f"Expected the framing of Joy: Fit at framing, got {type(one).__name__}. Wire its FRAMING."
            )
    return repeat_single(framed, count, "framing")


def repeat_single(values: Sequence[Any], count: int, what: str) -> list[Any]:
    """One value per image; a single one serves all."""
    if len(values) not in (1, count):
        raise ValueError(
            f"Expected one {what}, or one for each of {count} images, got {len(values)}. Give as many as "
            "images."
        )
    return list(values) * (count if len(values) == 1 else 1)


def require_mask(mask: Tensor, framing: Framing) -> Tensor:
    """A mask (h, w) of the input's size, or a ValueError."""
    height, width = framing.size
    if tuple(mask.shape) != framing.size:
        raise ValueError(
            f"Expected an edit mask of the input's size, {width} x {height} (width x height), got "
            f"{mask.shape[1]} x {mask.shape[0]}. Paint it on the image that went into Joy: Fit."
        )
    mask = torch.nan_to_num(mask.to(torch.float32), nan=0.0).clamp(0, 1)
    if not (mask > 0).any():
        raise ValueError(
            "Expected an edit mask with white where the image was edited, got one without a pixel. Paint the "
            "object's old and new position, or let the node find what changed."
        )
    return mask


def find_edited(edited: Tensor, framed: FramedImage, threshold: float) -> Tensor:
    """(h, w) of the input's size: 1 where the edited image (1, h, w, 3) differs from what the model saw."""
    source, framing = framed.image, framed.framing
    fitted = fit_images(source, framing)
    if edited.shape[1:3] != fitted.shape[1:3]:
        unfit_images(edited, framing)  # refuses it in a sentence
    difference = (edited[..., :3].to(fitted) - fitted)[0].numpy()
    smooth = ndimage.gaussian_filter(difference, (SMOOTHED, SMOOTHED, 0), mode="nearest")
    changed = np.abs(smooth).max(axis=-1) > threshold
    changed = ndimage.binary_opening(changed, iterations=SPECK)
    if not changed.any():
        return torch.zeros(framing.size)
    reach = 2 * GROWN + 1
    grown = F.max_pool2d(torch.from_numpy(changed).float()[None, None], reach, 1, GROWN)[0, 0]
    mask = torch.zeros(framing.size)
    left, top, right, bottom = framing.taken
    back = unfit_images(grown[None, ..., None], framing)[0, ..., 0]
    mask[top:bottom, left:right] = (back > 0.5).float()
    return mask


def soften(mask: Tensor, feather: int) -> Tensor:
    """(h, w) with a linear ramp of `feather` pixels inside each part of the mask; 0 stays exactly 0.

    The ramp of a thin part is shorter, so that its middle still is 1.
    """
    on = (mask > 0).numpy()
    if feather < 1 or not on.any() or on.all():
        return mask.clone()
    (window,) = ndimage.find_objects(on.astype(np.int8))
    window = tuple(slice(max(0, one.start - 1), one.stop + 1) for one in window)
    inside = on[window]
    distance = ndimage.distance_transform_edt(inside)
    parts, count = ndimage.label(inside, structure=np.ones((3, 3)))
    deepest = np.atleast_1d(ndimage.maximum(distance, parts, index=np.arange(count + 1)))
    ramp = np.minimum(feather, np.maximum(1.0, deepest / 2))[parts]
    softened = mask.clone()
    softened[window] *= torch.from_numpy(np.minimum(1.0, distance / ramp)).to(mask)
    return softened


@dataclass(frozen=True)
class RestoredBatch:
    """`Restored` of several images, as the sockets carry them."""

    images: list[Tensor]  # (1, h, w, 3) each
    edited: list[Tensor]  # (1, h, w) each
    uncovered: list[Tensor]
    alignment_px: float  # mean of the images in which it could be measured
    lines: tuple[str, ...]


def restore_all(
    images: Sequence[Tensor],
    framed: Sequence[FramedImage],
    *,
    masks: Sequence[Tensor] = (),
    threshold: float | None = None,
    feather: int = 0,
) -> RestoredBatch:
    """Each edited image (1, h, w, 3), restored in its mask, where it changed by `threshold`, or whole."""
    count = len(images)
    frames = require_framed(framed, count)
    drawn = repeat_single(masks, count, "edit mask") if len(masks) else [None] * count
    found, lines = [], []
    for index, (image, frame, mask) in enumerate(zip(images, frames, drawn, strict=True)):
        if mask is not None:
            mask = require_mask(mask, frame.framing)
        elif threshold is not None:
            mask = find_edited(image, frame, threshold)
        one = restore_image(image, frame, mask, feather)
        if mask is not None and not one.edited.any():
            lines.append("Nothing differs from the input, which is given back: the edit did not happen.")
        found.append(one)
        lines += [f"Image {index}:"] * (count > 1) + [one.describe()]
    measured = [one.alignment.mean_px for one in found if one.alignment.blocks]
    return RestoredBatch(
        [one.image for one in found],
        [one.edited[None] for one in found],
        [one.uncovered[None].float() for one in found],
        sum(measured) / len(measured) if measured else float("nan"),
        tuple(lines),
    )
