"""Depth, normals, segmentation and lines of an image, from any source, and figures of their agreement.

Segments are the solids, without surroundings and sky. All figures are per image, NaN where an image has
nothing to measure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...core.evaluation.metrics import abs_rel, normal_angle
from ...core.geometry.align import align_scale_shift
from ..render import Frames

FIGURES = ("depth_absrel", "normal_angle", "segmentation_miou", "line_f1")
OFFSET = 2.0  # makes encoded inverse depth in [-1, 1] positive


@dataclass(frozen=True)
class SceneMaps:
    """Maps of a batch of images.

    disparity (b, h, w): 1 / depth, larger = nearer, 0 = sky or unknown
    normals (b, h, w, 3): unit vectors, OpenCV camera frame, 0 = unknown
    segments (b, h, w): int64, a label for each solid, 0 = none
    line (b, h, w): bool
    """

    disparity: Tensor
    normals: Tensor
    segments: Tensor
    line: Tensor

    def __len__(self) -> int:
        return len(self.disparity)


def exact_maps(frames: Frames) -> SceneMaps:
    """The maps of rendered scenes."""
    return SceneMaps(1 / frames.depth, frames.normals, frames.segmentation.clamp_min(0), frames.line > 0.5)


def compare_maps(predicted: SceneMaps, truth: SceneMaps) -> dict[str, Tensor]:
    """`predicted` against `truth`, each figure (b,) float64.

    depth_absrel: mean of |depth - true depth| / true depth, after a least-squares scale and shift of the
    predicted disparity (affine-invariant), clamped to the image's true range; where the fitted scale is not
    positive, the prediction counts as constant. normal_angle: mean, in degrees, where both have a normal.
    segmentation_miou: see `match_segments`. line_f1: F1 of line pixels with a tolerance of one pixel.
    """
    rows = [
        (_depth_error(*depths), _angle(*normals), match_segments(*segments), line_f1(*lines))
        for depths, normals, segments, lines in zip(
            zip(predicted.disparity, truth.disparity),
            zip(predicted.normals, truth.normals),
            zip(predicted.segments, truth.segments),
            zip(predicted.line, truth.line),
            strict=True,
        )
    ]
    return dict(
        zip(FIGURES, torch.tensor(rows, dtype=torch.float64).reshape(-1, len(FIGURES)).unbind(1), strict=True)
    )


def _depth_error(predicted: Tensor, truth: Tensor) -> float:
    """Disparities (h, w); true sky is ignored, predicted sky counts as farthest."""
    known = (truth > 0)[None]
    if not bool(known.any()):
        return torch.nan
    predicted, truth = predicted[None].double() + OFFSET, truth[None].double()
    fit = align_scale_shift(predicted, truth, known)
    inside = truth[known]
    aligned = fit.apply(predicted) if float(fit.scale) > 0 else inside.mean().expand_as(truth)
    aligned = aligned.clamp(float(inside.min()), float(inside.max()))
    return abs_rel(1 / aligned, 1 / truth.masked_fill(~known, 1.0), known)


def _angle(predicted: Tensor, truth: Tensor) -> float:
    known = ((predicted != 0).any(-1) & (truth != 0).any(-1))[None]
    return normal_angle(predicted[None], truth[None], known) if bool(known.any()) else torch.nan


def match_segments(predicted: Tensor, truth: Tensor) -> float:
    """Mean intersection over union of segments (h, w) under the best one-to-one matching; unmatched segments
    count as 0.

    Two maps without any segment have 1.
    """
    sides = [(ids.unique(), ids) for ids in (predicted, truth)]
    masks = [
        torch.stack([ids == number for number in numbers[numbers > 0]] or [ids < 0]).flatten(1).double()
        for numbers, ids in sides
    ]
    counts = [int((numbers > 0).sum()) for numbers, _ in sides]
    if not max(counts):
        return 1.0
    both = masks[0] @ masks[1].T
    union = masks[0].sum(1)[:, None] + masks[1].sum(1) - both
    overlap = (both / union.clamp_min(1)).numpy()
    return float(overlap[linear_sum_assignment(overlap, maximize=True)].sum() / max(counts))


def line_f1(predicted: Tensor, truth: Tensor) -> float:
    """F1 of line pixels (h, w) with a tolerance of one pixel; 1 where there are none."""
    if not bool(predicted.any() | truth.any()):
        return 1.0
    near = [F.max_pool2d(line[None, None].float(), 3, 1, 1)[0, 0] > 0 for line in (predicted, truth)]
    precision = float((predicted & near[1]).sum()) / max(1, int(predicted.sum()))
    recall = float((truth & near[0]).sum()) / max(1, int(truth.sum()))
    return 2 * precision * recall / max(precision + recall, 1e-12)
