"""A picture's depth, normals, segments and lines, whoever says them, and how far two such accounts agree.

Segments are the solids; the surroundings and the sky are none. All figures are per picture, NaN where a picture has nothing to measure.
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
OFFSET = 2.0  # keeps a code of inverse depth in [-1, 1] above 0


@dataclass(frozen=True)
class SceneMaps:
    """disparity b h w: 1 / depth, larger = nearer, 0 = sky or not known; normals b h w 3: unit vectors, camera frame OpenCV, 0 = not known;
    segments b h w int64: a number for each solid, 0 = none; line b h w bool."""

    disparity: Tensor
    normals: Tensor
    segments: Tensor
    line: Tensor

    def __len__(self) -> int:
        return len(self.disparity)


def exact_maps(frames: Frames) -> SceneMaps:
    """What the renderer knows."""
    return SceneMaps(1 / frames.depth, frames.normals, frames.segmentation.clamp_min(0), frames.line > 0.5)


def compare_maps(said: SceneMaps, truth: SceneMaps) -> dict[str, Tensor]:
    """`said` against `truth`, each figure (b,) float64.

    depth_absrel: mean of |depth - true depth| / true depth after scale and shift of `said`'s disparity by least squares, as for an
    affine-invariant prediction, held between the picture's true ends; where the fit would turn near and far around, `said` counts as one
    constant. normal_angle: mean, in degrees, where both have a normal. segmentation_miou: see `match_segments`. line_f1: of line pixels
    right to within one pixel.
    """
    rows = [
        (_depth_error(*depths), _angle(*normals), match_segments(*segments), line_f1(*lines))
        for depths, normals, segments, lines in zip(
            zip(said.disparity, truth.disparity),
            zip(said.normals, truth.normals),
            zip(said.segments, truth.segments),
            zip(said.line, truth.line),
            strict=True,
        )
    ]
    return dict(zip(FIGURES, torch.tensor(rows, dtype=torch.float64).reshape(-1, len(FIGURES)).unbind(1), strict=True))


def _depth_error(said: Tensor, truth: Tensor) -> float:
    """Disparities h w; sky on the true side does not count, and on the other is the farthest there is."""
    known = (truth > 0)[None]
    if not bool(known.any()):
        return torch.nan
    said, truth = said[None].double() + OFFSET, truth[None].double()
    fit = align_scale_shift(said, truth, known)
    inside = truth[known]
    aligned = fit.apply(said) if float(fit.scale) > 0 else inside.mean().expand_as(truth)
    aligned = aligned.clamp(float(inside.min()), float(inside.max()))
    return abs_rel(1 / aligned, 1 / truth.masked_fill(~known, 1.0), known)


def _angle(said: Tensor, truth: Tensor) -> float:
    known = ((said != 0).any(-1) & (truth != 0).any(-1))[None]
    return normal_angle(said[None], truth[None], known) if bool(known.any()) else torch.nan


def match_segments(said: Tensor, truth: Tensor) -> float:
    """Mean intersection over union of segments h w matched one to one, so that their sum is greatest; what finds no partner counts as 0.

    Two accounts without any segment agree wholly.
    """
    sides = [(ids.unique(), ids) for ids in (said, truth)]
    masks = [torch.stack([ids == number for number in numbers[numbers > 0]] or [ids < 0]).flatten(1).double() for numbers, ids in sides]
    counts = [int((numbers > 0).sum()) for numbers, _ in sides]
    if not max(counts):
        return 1.0
    both = masks[0] @ masks[1].T
    union = masks[0].sum(1)[:, None] + masks[1].sum(1) - both
    overlap = (both / union.clamp_min(1)).numpy()
    return float(overlap[linear_sum_assignment(overlap, maximize=True)].sum() / max(counts))


def line_f1(said: Tensor, truth: Tensor) -> float:
    """Harmonic mean of how many lines h w said are true and how many true ones are said, to within one pixel; 1 where there are none."""
    if not bool(said.any() | truth.any()):
        return 1.0
    near = [F.max_pool2d(line[None, None].float(), 3, 1, 1)[0, 0] > 0 for line in (said, truth)]
    precision = float((said & near[1]).sum()) / max(1, int(said.sum()))
    recall = float((truth & near[0]).sum()) / max(1, int(truth.sum()))
    return 2 * precision * recall / max(precision + recall, 1e-12)
