"""Relative camera poses against the truth: angles of all pairs, and the area under their accuracy curve."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

THRESHOLDS = (5, 10, 30)  # degrees, of the published AUC


def pair_errors(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Angles in degrees, each (v (v - 1) / 2,), of the relative rotations and of the directions of the
    relative translations of world_to_cam poses (v, 4, 4).

    A direction counts up to its sign, as in VGGT's evaluation; pairs whose true cameras stand in one place
    have the translation error 0.
    """
    if pred.shape != target.shape or pred.ndim != 3 or pred.shape[-2:] != (4, 4):
        raise ValueError(
            f"Expected two sets of poses (v, 4, 4), got {tuple(pred.shape)} and {tuple(target.shape)}. Give "
            "one pose for each image."
        )
    if len(pred) < 2:
        raise ValueError(f"Expected at least 2 poses to compare, got {len(pred)}. Give more images.")
    pairs = torch.tensor(list(combinations(range(len(pred)), 2)), device=pred.device)
    found, true = (_relative(poses.double(), pairs) for poses in (pred, target))
    turn = found[:, :3, :3] @ true[:, :3, :3].transpose(1, 2)
    # atan2 keeps its digits where the arc cosine loses them
    axis = torch.stack(
        (turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]), -1
    )
    trace = turn.diagonal(dim1=1, dim2=2).sum(-1)
    rotation = torch.rad2deg(torch.atan2(axis.norm(dim=-1), trace - 1))
    return rotation, _direction_errors(found[:, :3, 3], true[:, :3, 3])


def accuracy_curve_area(rotation: Tensor, translation: Tensor, threshold: int) -> float:
    """AUC@threshold: the mean over 1, 2, ... threshold degrees of the share of pairs whose larger error is
    below.
    """
    worst = torch.maximum(rotation, translation)
    bounds = torch.arange(1, threshold + 1, device=worst.device, dtype=worst.dtype)
    return float((worst[:, None] < bounds).double().mean())


def score_poses(rotation: Tensor, translation: Tensor) -> dict[str, float]:
    """AUC@5, @10 and @30 in percent, and the median errors in degrees."""
    areas = {f"auc{t}": 100 * accuracy_curve_area(rotation, translation, t) for t in THRESHOLDS}
    medians = {"rotation": float(rotation.median()), "translation": float(translation.median())}
    return areas | medians


def _relative(poses: Tensor, pairs: Tensor) -> Tensor:
    """Poses (p, 4, 4) from the first camera of each pair to the second."""
    first, second = poses[pairs[:, 0]], poses[pairs[:, 1]]
    return second @ torch.linalg.inv(first)


def _direction_errors(pred: Tensor, target: Tensor) -> Tensor:
    cross = torch.linalg.cross(pred, target).norm(dim=-1)
    angle = torch.rad2deg(torch.atan2(cross, (pred * target).sum(-1)))
    angle = torch.minimum(angle, 180 - angle)
    return torch.where(target.norm(dim=-1) > 1e-9, angle, torch.zeros_like(angle))
