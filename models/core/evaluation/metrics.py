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
    _check(pred, target, mask.unsqueeze(-1).expand(pred.shape))
    pred, target = pred.double(), target.double()
    # atan2 is precise where the arc cosine is not, near 0 and 180 degrees
    angle = torch.atan2(torch.linalg.cross(pred, target).norm(dim=-1), (pred * target).sum(dim=-1))
    return _mean([torch.rad2deg(a[m]).mean() for a, m in zip(angle, mask, strict=True)])


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
    _check(pred, target, mask)
    if not bool((target[mask] > 0).all()):
        raise ValueError(
            "Expected target depths above 0 inside the mask, got depths of 0 or below. Mask them."
        )
    return _mean([error(p[m].double(), t[m].double()) for p, t, m in zip(pred, target, mask, strict=True)])


def _check(pred: Tensor, target: Tensor, mask: Tensor) -> None:
    if not pred.shape == target.shape == mask.shape:
        shapes = tuple(pred.shape), tuple(target.shape), tuple(mask.shape)
        raise ValueError(
            f"Expected prediction, target and mask of one shape, got {shapes}. Resize them to one size."
        )
    for index, (p, t, m) in enumerate(zip(pred, target, mask, strict=True)):
        if not bool(m.any()):
            raise ValueError(
                f"Expected a valid pixel to score, got none in image {index} of {len(mask)}. Leave it out "
                "or correct its mask."
            )
        if not bool(torch.isfinite(p[m]).all() and torch.isfinite(t[m]).all()):
            raise ValueError(
                f"Expected finite numbers inside the mask, got NaN or infinity in image {index} of "
                f"{len(mask)}. Mask these pixels."
            )


def _mean(figures: list[Tensor]) -> float:
    return float(torch.stack(figures).mean())
