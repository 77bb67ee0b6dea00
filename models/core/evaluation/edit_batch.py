"""Checking a batch of edits: inputs are refused by a sentence, batches of 1 serve all."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor

from ..geometry.align import Each
from ..geometry.view import View
from .edit_check import EditReport, check_edit
from .edit_verdict import EditRequest

_RATIO = 0.02  # by which the depth's aspect ratio may differ from the images'


def check_edits(
    before: Tensor,
    after: Tensor,
    view: View,
    request: EditRequest,
    *,
    object_before: Tensor | None = None,
    object_after: Tensor | None = None,
    target: Tensor | None = None,
    view_after: View | None = None,
    fov_degrees: float | None = None,
    each: Each = iter,
) -> list[EditReport]:
    """A report of each pair of images (b, h, w, c); masks are (b, h, w), white where the object is."""
    images = {"image before": before, "image after": after}
    _check_images(images)
    views = {"VIEW": view} | ({} if view_after is None else {"VIEW after": view_after})
    for name, one in views.items():
        _check_view(name, one, before, fov_degrees)
    masks = {"object_mask": object_before, "object_mask_after": object_after, "target_mask": target}
    masks = {name: _check_mask(name, mask, before) for name, mask in masks.items() if mask is not None}
    count = _batch({**images, **views, **masks})
    reports = []
    for index in each(list(range(count))):
        pair = [image[min(index, len(image) - 1)][..., :3].float() for image in images.values()]
        one = {name: some[min(index, len(some) - 1)] for name, some in {**views, **masks}.items()}
        reports.append(
            check_edit(
                *pair,
                one["VIEW"],
                replace(request, target=one.get("target_mask")),
                object_before=one.get("object_mask"),
                object_after=one.get("object_mask_after"),
                view_after=one.get("VIEW after"),
                fov_degrees=fov_degrees,
            )
        )
    return reports


def describe_edits(reports: list[EditReport]) -> str:
    """The verdicts, a line each, and the notes."""
    lines = []
    for index, report in enumerate(reports):
        prefix = f"image {index}: " if len(reports) > 1 else ""
        lines += [prefix + report.verdict.sentence, *(prefix + note for note in report.notes)]
    return "\n".join(lines)


def edits_to_json(reports: list[EditReport]) -> str:
    """Everything measured, as a JSON list with an object for each image."""
    rows = []
    for report in reports:
        head = {"done": report.verdict.is_done, "failures": report.verdict.failures}
        head |= {"verdict": report.verdict.sentence}
        rows.append(head | {name: _rounded(value) for name, value in report.figures.items()})
    return json.dumps(rows, indent=2)


def _rounded(value):
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def _check_images(images: dict[str, Tensor]) -> None:
    for name, image in images.items():
        if image.ndim != 4 or image.shape[-1] < 3:
            raise ValueError(
                f"Expected the {name} as (b, h, w, 3), got {tuple(image.shape)}. Give a color image."
            )
        if not bool(torch.isfinite(image).all()):
            raise ValueError(
                f"Expected numbers in the {name}, got NaN or infinity. Check the model that sampled it."
            )
    sizes = [tuple(image.shape[1:3]) for image in images.values()]
    if sizes[0] != sizes[1]:
        was, now = (f"{width} x {height}" for height, width in sizes)
        raise ValueError(
            f"Expected two images of one size, got {was} before and {now} after. Bring the image after back "
            "to the framing and size of the one before."
        )
    if min(sizes[0]) < 16:
        height, width = sizes[0]
        raise ValueError(f"Expected images of at least 16 x 16, got {width} x {height}. Give larger ones.")


def _check_view(name: str, view: View, image: Tensor, fov_degrees: float | None) -> None:
    view.require_valid()
    height, width = image.shape[1:3]
    rows, columns = view.depth.shape[1:]
    if abs(columns / rows / (width / height) - 1) > _RATIO:
        raise ValueError(
            f"Expected a {name} of the shape of the images, {width} x {height}, got {columns} x {rows}. "
            "Estimate the depth of the same image."
        )
    if view.intrinsics is None and fov_degrees is None:
        raise ValueError(
            f"Expected a {name} with a camera, got one without intrinsics. Set fov_degrees (50 is usual "
            "for a photo), or take the depth from a node that estimates the camera, such as MoGe."
        )


def _check_mask(name: str, mask: Tensor, image: Tensor) -> Tensor:
    height, width = image.shape[1:3]
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or tuple(mask.shape[1:]) != (height, width):
        raise ValueError(
            f"Expected {name} as (b, {height}, {width}), the size of the images, got {tuple(mask.shape)}. "
            "Scale it with Resize Image/Mask."
        )
    mask = mask > 0.5
    for index, one in enumerate(mask):
        if not bool(one.any()):
            raise ValueError(
                f"Expected a white region in {name}, got an empty mask (image {index}). Draw the object, or "
                "leave the mask out."
            )
    return mask


def _batch(parts: dict[str, Tensor | View]) -> int:
    counts = {name: len(part) for name, part in parts.items()}
    count = max(counts.values())
    wrong = {name: some for name, some in counts.items() if some not in (1, count)}
    if wrong:
        name, some = next(iter(wrong.items()))
        largest = max(counts, key=lambda each: counts[each])
        raise ValueError(
            f"Expected batches of one size, or of 1, got {count} of {largest} and {some} of {name}. Give "
            "equally many, or one for all."
        )
    return count
