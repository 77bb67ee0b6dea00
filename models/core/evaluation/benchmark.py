"""One prediction against one sample of a depth benchmark: aligned as the papers do it, and scored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.align import align_scale, align_scale_shift
from ..geometry.view import View
from .metrics import abs_rel, delta, rmse

DepthAlignment = Literal[
    "none", "scale", "scale-robust", "scale-shift", "scale-shift-robust", "disparity-scale-shift"
]
ALIGNMENT_WORDS: dict[DepthAlignment, str] = {
    "none": "as predicted, in metres",
    "scale": "median scale",
    "scale-robust": "scale by least relative absolute error (MoGe)",
    "scale-shift": "scale and shift by least squares (Marigold)",
    "scale-shift-robust": "scale and shift by least relative absolute error (MoGe-2, Modality Forcing)",
    "disparity-scale-shift": "scale and shift of disparity by least squares (Depth Anything)",
}
FIGURES = ("absrel", "delta1", "rmse")
_FITTED_PIXELS = 4096  # of the robust fits, evenly spread, as many as MoGe's
_REWEIGHTINGS = 50
_SMALLEST = 1e-6  # of a depth that a fit drives to 0 or below, as in Marigold's evaluation


@dataclass(frozen=True)
class DepthSample:
    """One image of a benchmark with its true depth."""

    name: str
    image: Tensor  # (h, w, 3) in [0, 1]
    depth: Tensor  # (h, w) float32, true z-depth
    mask: Tensor  # (h, w) bool, True = counts
    metric: bool  # the true depth is in metres
    limits: tuple[float, float] | None = None  # the aligned prediction is clamped to these depths


def score_depth_sample(view: View, sample: DepthSample, alignment: DepthAlignment) -> dict[str, float]:
    """AbsRel, delta1 and RMSE of a View with batch 1, and `missing`, the share of counted pixels without a
    predicted depth; these have the depth 0, and with it the full error.
    """
    if alignment not in get_args(DepthAlignment):
        raise ValueError(
            f"Expected an alignment of {get_args(DepthAlignment)}, got {alignment!r}. Choose one of these."
        )
    if len(view) != 1:
        raise ValueError(f"Expected one depth map for {sample.name}, got {len(view)}. Predict one by one.")
    if alignment == "none" and not (sample.metric and view.units == "metric"):
        raise ValueError(
            f"Expected a metric prediction and metric truth for the alignment 'none' ({sample.name}), got "
            f"{view.units} and {'metric' if sample.metric else 'relative'}. Choose another alignment."
        )
    depth, seen = fit_prediction_size(view, tuple(sample.depth.shape))
    mask = sample.mask & (sample.depth > 0)
    if not bool((mask & seen).any()):
        raise ValueError(
            f"Expected pixels of {sample.name} that are valid in the prediction and in the truth, got none. "
            "Check the depth of both."
        )
    aligned = align_prediction(depth, sample.depth, mask & seen, alignment)
    low, high = sample.limits or (_SMALLEST, float("inf"))
    aligned = torch.where(seen, aligned.clamp(max(low, _SMALLEST), high), torch.zeros_like(aligned))
    sets = (aligned[None], sample.depth[None], mask[None])
    figures = {"absrel": abs_rel(*sets), "delta1": delta(*sets), "rmse": rmse(*sets)}
    return figures | {"missing": float((mask & ~seen).sum()) / float(mask.sum())}


def fit_prediction_size(view: View, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Depth and mask (h, w) of a View with batch 1 at a size; bilinear among valid pixels."""
    depth, mask = view.depth[:1, None], view.mask[:1, None].float()
    if tuple(depth.shape[2:]) == size:
        return depth[0, 0], mask[0, 0] > 0
    smaller = size[0] < depth.shape[2]
    options = {"size": size, "mode": "bilinear", "align_corners": False, "antialias": smaller}
    weight = F.interpolate(mask, **options)
    depth = F.interpolate(depth, **options) / weight.clamp_min(1e-6)
    return depth[0, 0], weight[0, 0] > 0.5


def align_prediction(depth: Tensor, target: Tensor, mask: Tensor, alignment: DepthAlignment) -> Tensor:
    """The predicted depth (h, w) fitted to the target where `mask` is True."""
    if alignment == "none":
        return depth
    if alignment in ("scale", "scale-shift"):
        fit = align_scale if alignment == "scale" else align_scale_shift
        return fit(depth[None], target[None], mask[None]).apply(depth[None])[0]
    if alignment == "disparity-scale-shift":
        ends = (torch.where(mask, 1 / values, torch.zeros_like(values))[None] for values in (depth, target))
        disparity = align_scale_shift(*ends, mask[None]).apply(1 / depth.clamp_min(_SMALLEST)[None])[0]
        # as MoGe's evaluation: a disparity near 0 would be an outlier without bound
        return 1 / disparity.clamp_min(float(1 / target[mask].max()))
    p, t = (_spread(values[mask].double()) for values in (depth, target))
    scale, shift = _fit_relative(p, t, with_shift=alignment == "scale-shift-robust")
    return (depth.double() * scale + shift).to(depth)


def average_predictions(views: list[View]) -> View:
    """One View of several predictions of one image: each fitted to their median by scale and shift, then the
    median again, as the ensembles of generative depth models are.
    """
    if len(views) == 1:
        return views[0]
    mask = torch.stack([view.mask for view in views]).all(dim=0)
    if not bool(mask.any()):
        raise ValueError(
            "Expected predictions with pixels in common, got none. Predict once, or fewer times."
        )
    depths = torch.stack([view.depth[0] for view in views])
    for _ in range(3):
        middle = depths.median(dim=0).values
        fitted = [align_prediction(depth, middle, mask[0], "scale-shift") for depth in depths]
        depths = torch.stack(fitted)
    middle = torch.where(
        mask[0], depths.median(dim=0).values.clamp_min(_SMALLEST), torch.zeros_like(depths[0])
    )
    return replace(View.from_depth(middle, units="relative", mask=mask), image=views[0].image)


def _spread(values: Tensor) -> Tensor:
    """At most _FITTED_PIXELS of the values (n,), evenly."""
    step = max(1, -(-len(values) // _FITTED_PIXELS))
    return values[::step]


def _fit_relative(pred: Tensor, target: Tensor, *, with_shift: bool) -> tuple[float, float]:
    """Scale and shift of least sum |scale pred + shift - target| / target, in float64."""
    ones = torch.ones_like(target)[None]
    ratio = (pred / target)[None]
    scale = align_scale(ratio, ones, ones > 0, method="l1").scale
    if not with_shift:
        return float(scale), 0.0
    # iteratively reweighted least squares of [pred, 1] / target against 1
    columns = torch.stack((pred / target, 1 / target), dim=-1)
    best = torch.stack((scale[0], torch.zeros_like(scale[0])))
    for _ in range(_REWEIGHTINGS):
        weight = 1 / (columns @ best - 1).abs().clamp_min(1e-6)
        normal = columns.T @ (columns * weight[:, None])
        normal = normal + 1e-12 * normal.diagonal().mean() * torch.eye(2, dtype=normal.dtype)
        best = torch.linalg.solve(normal, columns.T @ weight)
    return float(best[0]), float(best[1])
