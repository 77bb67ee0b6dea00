"""Depth and normal errors as defined in the depth papers: aligned tensors in, floats out.

``pred`` and ``target`` are (b, h, w) (normals (b, h, w, 3)), ``mask`` is (b, h, w) bool, True = evaluated. A
score is the mean over the valid pixels of an image, then over the images, so that an image with many holes
weighs as much as another. Nothing is aligned in here (see geometry.align); the alignment that was used
belongs beside every published score.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..geometry.align import select_valid


def abs_rel(pred: Tensor, target: Tensor, mask: Tensor) -> float:
    """Mean of |pred - target| / target; 0 is perfect."""
    return _per_picture(pred, target, mask, lambda p, t: ((p - t).abs() / t).mean())


def delta(pred: Tensor, target: Tensor, mask: Tensor, power: int = 1) -> float:
    """Share of the pixels with max(pred / target, target / pred) < 1.25 ** power; 1 is perfect."""
    threshold = 1.25**power
    # as products, so that a prediction of 0 or below fails
    return _per_picture(
        pred, target, mask, lambda p, t: ((p < threshold * t) & (t < threshold * p)).double().mean()
    )


def rmse(pred: Tensor, target: Tensor, mask: Tensor) -> float:
    """Root of the mean squared difference, in the unit of the depth."""
    return _per_picture(pred, target, mask, lambda p, t: (p - t).square().mean().sqrt())


def si_log(pred: Tensor, target: Tensor, mask: Tensor) -> float:
    """Scale-invariant log error, 100 x the standard deviation of ln pred - ln target (KITTI).

    Invariant to a factor on the prediction.
    """
    return _per_picture(pred, target, mask, _si_log)


def _si_log(pred: Tensor, target: Tensor) -> Tensor:
    if not bool((pred > 0).all()):
        raise ValueError(
            f"Expected predicted depths above 0, which have a logarithm, got {int((pred <= 0).sum())} "
            "pixels at or below 0. Clip or mask them."
        )
    return 100 * (pred.log() - target.log()).std(correction=0)


def normal_angle(pred: Tensor, target: Tensor, mask: Tensor) -> float:
    """Mean angle in degrees between normals (b, h, w, 3); they need not be of unit length."""
    select_valid(pred, target, mask.unsqueeze(-1).expand(pred.shape), "score")
    pred, target = pred.double(), target.double()
    # atan2 is precise where the arc cosine is not, near 0 and 180 degrees
    angle = torch.atan2(torch.linalg.cross(pred, target).norm(dim=-1), (pred * target).sum(dim=-1))
    return _mean([torch.rad2deg(a[m]).mean() for a, m in zip(angle, mask, strict=True)])


LARGEST_STEP = 0.05  # of log depth between neighbors; an outline counts as this much


def patch_steps(depth: Tensor, mask: Tensor, patch: int) -> tuple[float, float]:
    """(border, inner): mean |log depth step| between neighboring pixels of (b, h, w), of those on the two
    sides of a border between patches and of those inside one; each step counts at most LARGEST_STEP.

    Their quotient is the blockiness of a depth made patch by patch: 1 where borders do not show. Noise inside
    the patches lowers it, too, so read the two steps beside those of exact depth.
    """
    select_valid(depth, depth, mask, "score")
    log = torch.where(mask, depth, 1.0).double().clamp(min=1e-6).log()
    border, inner = [], []
    for dim in (-1, -2):
        step = log.diff(dim=dim).abs().clamp(max=LARGEST_STEP).movedim(dim, 0)
        pairs = step.shape[0]
        both = (mask.narrow(dim, 0, pairs) & mask.narrow(dim, 1, pairs)).movedim(dim, 0)
        at_border = (torch.arange(pairs, device=depth.device) + 1) % patch == 0
        border.append(step[at_border][both[at_border]])
        inner.append(step[~at_border][both[~at_border]])
    return float(torch.cat(border).mean()), float(torch.cat(inner).mean())


def score_depth(pred: Tensor, target: Tensor, mask: Tensor) -> dict[str, float]:
    """All depth metrics of one aligned prediction, under the papers' names."""
    return {
        "absrel": abs_rel(pred, target, mask),
        "delta1": delta(pred, target, mask, 1),
        "delta2": delta(pred, target, mask, 2),
        "delta3": delta(pred, target, mask, 3),
        "rmse": rmse(pred, target, mask),
        "silog": si_log(pred, target, mask),
    }


def _per_picture(
    pred: Tensor, target: Tensor, mask: Tensor, error: Callable[[Tensor, Tensor], Tensor]
) -> float:
    pairs = select_valid(pred, target, mask, "score")
    if not all(bool((t > 0).all()) for _, t in pairs):
        raise ValueError(
            "Expected target depths above 0 inside the mask, got depths of 0 or below. Mask them."
        )
    return _mean([error(p, t) for p, t in pairs])


def _mean(figures: list[Tensor]) -> float:
    return float(torch.stack(figures).mean())
