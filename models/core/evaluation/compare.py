"""A depth against a truth: aligned, scored, and described in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..geometry.align import Each, Fit, Quantity, align_depth, match_views
from ..geometry.normals import normals_from_depth
from ..geometry.points import find_intrinsics
from ..geometry.view import View
from .metrics import normal_angle, score_depth

Alignment = Literal["none", Fit]
_WORDS = {
    "absrel": "AbsRel",
    "delta1": "delta1",
    "delta2": "delta2",
    "delta3": "delta3",
    "rmse": "RMSE",
    "silog": "SILog",
}


@dataclass(frozen=True)
class Comparison:
    """The scores of one comparison, and the conditions under which they hold."""

    # score_depth's names, and normal_angle in degrees, NaN where no normal can be measured
    scores: dict[str, float]
    alignment: str
    pixels: int  # number of evaluated pixels: valid on both sides
    total: int
    clamped: int  # predicted pixels that the alignment moved out of range
    units: str

    def describe(self) -> str:
        """Several lines: the scores, then what they mean."""
        lines = [f"{word} {self.scores[name]:.4g}" for name, word in _WORDS.items()]
        lines[4] += " metres" if self.units == "metric" else " relative units"
        angle = self.scores["normal_angle"]
        lines.append(
            "normal angle not measurable" if math.isnan(angle) else f"normal angle {angle:.4g} degrees"
        )
        lines.append(
            f"alignment: {self.alignment}; {self.pixels} of {self.total} pixels count "
            f"({self.pixels / self.total:.1%})"
        )
        if self.clamped:
            lines.append(f"{self.clamped} aligned pixels were out of range and were clamped")
        return "\n".join(lines)


def compare_views(
    view: View,
    reference: View,
    *,
    alignment: Alignment = "none",
    quantity: Quantity = "depth",
    fov_degrees: float | None = None,
    each: Each = iter,
) -> Comparison:
    """Score a View against the truth, over the pixels valid in both; "none" does not change the scale, and
    needs one unit.

    Normals are the views' own where both have them, else computed from both depths through the reference's
    camera, the view's, or one of ``fov_degrees``. What the alignment moves below 1/1000 of the nearest true
    depth or beyond 1000 times the farthest is clamped, so that a failed fit has a finite cost.
    """
    if alignment != "none" and alignment not in get_args(Fit):
        raise ValueError(
            f"Expected an alignment of 'none' or {get_args(Fit)}, got {alignment!r}. Choose one of these."
        )
    if alignment == "none" and view.units != reference.units:
        raise ValueError(
            f"Expected two depths of one unit, got {view.units} and {reference.units}, which share no "
            "scale. Choose an alignment."
        )
    depth, target, mask = match_views(view.require_valid(), reference.require_valid())
    for index, one in enumerate(mask):
        if not bool(one.any()):
            raise ValueError(
                f"Expected a pixel that is valid in both depths, got none in image {index} of {len(mask)}. "
                "Check that they show the same scene."
            )
    aligned = (
        depth if alignment == "none" else align_depth(depth, target, mask, alignment, quantity, each=each)[0]
    )
    low, high = float(target[mask].min()) / 1000, float(target[mask].max()) * 1000
    clamped = mask & ((aligned < low) | (aligned > high)) if alignment != "none" else torch.zeros_like(mask)
    aligned = torch.where(clamped, aligned.clamp(low, high), aligned)
    pred, true = _normals(view, reference, aligned, target, mask, fov_degrees=fov_degrees, each=each)
    scores = score_depth(aligned, target, mask) | {"normal_angle": _angle(pred, true, mask)}
    words = alignment if alignment == "none" else f"{alignment}, in {quantity}"
    return Comparison(scores, words, int(mask.sum()), mask.numel(), int(clamped.sum()), reference.units)


def _normals(
    view: View,
    reference: View,
    depth: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    fov_degrees: float | None,
    each: Each,
) -> tuple[Tensor, Tensor]:
    """Normals (b, h, w, 3) of both sides; zero (undefined) if no camera is known."""
    if view.normals is not None and reference.normals is not None:
        return tuple(torch.broadcast_tensors(view.normals, reference.normals))
    camera = reference if reference.intrinsics is not None else view
    if camera.intrinsics is None and fov_degrees is None:
        none = torch.zeros((*depth.shape, 3), device=depth.device)
        return none, none
    parts = zip(
        depth, target, find_intrinsics(camera, fov_degrees).expand(len(depth), 3, 3), mask, strict=True
    )
    pairs = []
    for parts_of_one in each(list(parts)):
        one, truth, intrinsics, known = (part.unsqueeze(0) for part in parts_of_one)
        pairs.append([normals_from_depth(values, intrinsics, known) for values in (one, truth)])
    pred, true = zip(*pairs, strict=True)
    return torch.cat(pred), torch.cat(true)


def _angle(pred: Tensor, true: Tensor, mask: Tensor) -> float:
    """Mean angle of the normals in degrees, NaN if no image has any."""
    known = mask & (pred != 0).any(-1) & (true != 0).any(-1)
    has_some = known.flatten(1).any(1)
    return normal_angle(pred[has_some], true[has_some], known[has_some]) if bool(has_some.any()) else math.nan
