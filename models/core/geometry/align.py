"""Align a predicted depth to a target: one scale, or scale and shift, for each image.

``pred`` and ``target`` are (b, ...) in any one quantity (depth, or disparity), ``mask`` is bool, True where
both are valid. All sums run in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .view import View, percentile

ScaleMethod = Literal["median", "least_squares", "l1"]
AffineMethod = Literal["least_squares", "l1"]
Fit = Literal["scale", "scale, robust", "scale and shift", "scale and shift, robust"]
Quantity = Literal["depth", "disparity"]
SAMPLE = 1 << 18  # pixels of a robust fit before it sees all of a larger image
LAST_STEPS = 4  # on all pixels, from the fit of the sample
CHUNK = 1 << 15  # pixels
# runs a loop over images: a host shows its progress, and can cancel it between two of them
Each = Callable[[list], Iterable]


@dataclass(frozen=True)
class Alignment:
    """``aligned = scale * pred + shift``, one of each per image."""

    scale: Tensor  # (b,), float64
    shift: Tensor  # (b,), float64

    def apply(self, pred: Tensor) -> Tensor:
        """The aligned prediction (b, ...) in the dtype of ``pred``."""
        shape = (-1,) + (1,) * (pred.ndim - 1)
        return (pred.double() * self.scale.reshape(shape) + self.shift.reshape(shape)).to(pred.dtype)

    def describe(self) -> str:
        """Scale and shift of each image, a line each."""
        pairs = zip(self.scale.tolist(), self.shift.tolist(), strict=True)
        return "\n".join(
            f"image {index}: scale {scale:.6g}, shift {shift:.6g}"
            for index, (scale, shift) in enumerate(pairs)
        )

    def check_direction(self) -> None:
        """Raise ValueError naming the first image whose fit inverts the depth: near becomes far."""
        for index, scale in enumerate(self.scale.tolist()):
            if not scale > 0:
                raise ValueError(
                    f"Expected a fit with a scale above 0, got the scale {scale:.4g} for image {index}, "
                    "which makes near things far, or all things equally far. Check that disparity was not "
                    "taken for depth and that both show the same scene, or fit the scale alone."
                )


def align_scale(
    pred: Tensor, target: Tensor, mask: Tensor, *, method: ScaleMethod = "median", each: Each = iter
) -> Alignment:
    """The scale of each image, shift 0.

    "median" is median(target) / median(pred), the convention in depth papers; "least_squares" minimizes the
    squared error; "l1" the absolute error, exactly, and is the most robust to outliers.
    """
    if method not in get_args(ScaleMethod):
        raise ValueError(
            f"Expected a scale method of {get_args(ScaleMethod)}, got {method!r}. Choose one of these."
        )
    fit = {"median": _median_scale, "least_squares": _least_squares_scale, "l1": _l1_scale}[method]
    scale = torch.stack([fit(p, t) for p, t in each(_pixels_to_fit(pred, target, mask))])
    return Alignment(scale, torch.zeros_like(scale))


def align_scale_shift(
    pred: Tensor, target: Tensor, mask: Tensor, *, method: AffineMethod = "least_squares", each: Each = iter
) -> Alignment:
    """Scale and shift of each image, by least squares or by absolute error ("l1", robust, iteratively
    reweighted).

    A constant prediction determines no shift: its scale matches the target's mean.
    """
    if method not in get_args(AffineMethod):
        raise ValueError(
            f"Expected a scale and shift method of {get_args(AffineMethod)}, got {method!r}. Choose one of "
            "these."
        )
    fit = {"least_squares": _affine, "l1": _l1_affine}[method]
    fits = [fit(p, t) for p, t in each(_pixels_to_fit(pred, target, mask))]
    return Alignment(torch.stack([scale for scale, _ in fits]), torch.stack([shift for _, shift in fits]))


def align_depth(
    depth: Tensor, target: Tensor, mask: Tensor, fit: Fit, quantity: Quantity = "depth", *, each: Each = iter
) -> tuple[Tensor, Alignment]:
    """Depth (b, h, w) fitted to a target where ``mask`` is True, by median or least squares, or robustly by
    absolute error.

    In "disparity" 1 / depth is fitted to 1 / target, which gives near pixels more weight and suits networks
    that predict disparity. The fit is applied to all pixels; those it moves to 0, below, or beyond infinity
    are returned as 0 or less, or infinite.
    """
    if fit not in get_args(Fit) or quantity not in get_args(Quantity):
        raise ValueError(
            f"Expected a fit of {get_args(Fit)} in {get_args(Quantity)}, got {fit!r} in {quantity!r}. Choose "
            "one of these."
        )
    depth, target = depth.double(), target.double()
    if quantity == "disparity":
        depth, target = 1 / depth, 1 / target
    ends = (torch.where(mask, values, torch.zeros_like(values)) for values in (depth, target))
    if fit.startswith("scale and shift"):
        found = align_scale_shift(
            *ends, mask, method="l1" if fit.endswith("robust") else "least_squares", each=each
        )
    else:
        found = align_scale(*ends, mask, method="l1" if fit.endswith("robust") else "median", each=each)
    aligned = found.apply(depth)
    return (1 / aligned.clamp_min(0) if quantity == "disparity" else aligned).float(), found


def match_views(view: View, reference: View) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, true depth and their common mask, (b, h, w); a batch of 1 broadcasts."""
    if view.depth.shape[1:] != reference.depth.shape[1:]:
        own, other = (f"{tensor.shape[2]} x {tensor.shape[1]}" for tensor in (view.depth, reference.depth))
        raise ValueError(
            f"Expected a depth of the reference's {other} pixels, got {own}. Scale the image to {other} with "
            "Upscale Image before estimating its depth, or estimate both depths from one image."
        )
    if len(view) != len(reference) and 1 not in (len(view), len(reference)):
        raise ValueError(
            f"Expected as many references as depth maps, got {len(reference)} for {len(view)}. Give equally "
            "many, or one for all."
        )
    depth, target = torch.broadcast_tensors(view.depth, reference.depth.to(view.depth.device))
    return depth, target, view.mask & reference.mask.to(view.mask.device)


def align_view(
    view: View, reference: View, fit: Fit, quantity: Quantity = "depth", *, each: Each = iter
) -> tuple[View, Alignment]:
    """The View in the scale and unit of a reference, and the fit.

    Pixels that the fit moves to 0, below, or beyond infinity become invalid. A pose is scaled with the world.
    A shift, or a scale of disparity with one, bends surfaces: pose and normals are then dropped. A scale of 0
    or below is refused, since the result would be no depth of this scene.
    """
    depth, target, mask = match_views(view, reference)
    aligned, found = align_depth(depth, target, mask, fit, quantity, each=each)
    found.check_direction()
    aligned = aligned.masked_fill(~view.mask | aligned.isinf(), 0)
    others = {name: getattr(view, name) for name in ("image", "confidence", "sky", "intrinsics")}
    if not bool(found.shift.any()):
        others |= {"normals": view.normals, "world_to_cam": view.world_to_cam}
        if view.world_to_cam is not None:
            scale = found.scale if quantity == "depth" else 1 / found.scale
            pose = view.world_to_cam.expand(len(scale), 4, 4).clone()
            pose[:, :3, 3] *= scale.unsqueeze(-1).to(pose)
            others["world_to_cam"] = pose
    return View.from_depth(aligned[:, None], units=reference.units, **others), found


def select_valid(
    pred: Tensor, target: Tensor, mask: Tensor, purpose: str
) -> list[tuple[Tensor, Tensor]]:
    """The pixels of each image inside the mask, flat and float64.

    ValueError for shapes that differ and for an image without a pixel to `purpose`, or with NaN or infinity.
    """
    if not pred.shape == target.shape == mask.shape:
        shapes = tuple(pred.shape), tuple(target.shape), tuple(mask.shape)
        raise ValueError(
            f"Expected prediction, target and mask of one shape, got {shapes}. Resize them to one size."
        )
    pairs = [_inside(*image) for image in zip(pred, target, mask, strict=True)]
    for index, (p, t) in enumerate(pairs):
        if p.numel() == 0:
            raise ValueError(
                f"Expected a valid pixel to {purpose}, got none in image {index} of {len(pairs)}. Leave it "
                "out or correct its mask."
            )
        # the extremes are NaN where any value is: one pass each instead of a map of what is finite
        if not bool(torch.isfinite(torch.stack([*p.aminmax(), *t.aminmax()])).all()):
            raise ValueError(
                f"Expected finite numbers inside the mask, got NaN or infinity in image {index} of "
                f"{len(pairs)}. Mask these pixels."
            )
    return pairs


def _inside(pred: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both flat and float64 where `mask` is True; its indices are found once, for both."""
    flat = (values.reshape(-1) for values in (pred, target))
    if bool(mask.all()):
        return tuple(values.double() for values in flat)
    kept = mask.reshape(-1).nonzero().squeeze(-1)
    return tuple(values.index_select(0, kept).double() for values in flat)


def _pixels_to_fit(pred: Tensor, target: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """As `select_valid`; ValueError for a prediction of zeros alone."""
    pairs = select_valid(pred, target, mask, "align by")
    for index, (p, _) in enumerate(pairs):
        if not bool(p.any()):
            raise ValueError(
                f"Expected a prediction that is not zero, got zero in every valid pixel of image {index}, "
                "which no scale can fit. Check its source."
            )
    return pairs


def _median_scale(pred: Tensor, target: Tensor) -> Tensor:
    median = percentile(pred, 50)
    if float(median) == 0:
        raise ValueError(
            "Expected a prediction with a median above 0 for method 'median', got a median of 0. Use "
            "'least_squares' or 'l1'."
        )
    return percentile(target, 50) / median


def _least_squares_scale(pred: Tensor, target: Tensor) -> Tensor:
    return (pred * target).sum() / (pred * pred).sum()


def _l1_scale(pred: Tensor, target: Tensor) -> Tensor:
    """argmin of sum |s p - t| = sum |p| |s - t / p|: the median of t / p weighted by |p|."""
    pred, target = pred[pred != 0], target[pred != 0]
    ratio, order = (target / pred).sort()
    weight = pred.abs()[order].cumsum(0)
    return ratio[torch.searchsorted(weight, weight[-1] / 2)]


def _affine(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted least squares of scale and shift, centered for numerical precision."""
    weight = torch.ones_like(pred) if weight is None else weight
    weight = weight / weight.sum()
    mean_pred, mean_target = (weight * pred).sum(), (weight * target).sum()
    spread = pred - mean_pred
    variance = (weight * spread * spread).sum()
    if float(variance) <= 1e-24 * float(mean_pred) ** 2:
        return mean_target / mean_pred, torch.zeros_like(mean_pred)
    scale = (weight * spread * (target - mean_target)).sum() / variance
    return scale, mean_target - scale * mean_pred


def _l1_affine(pred: Tensor, target: Tensor, *, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Iteratively reweighted least squares; of a large image on a sample, then a few steps on all pixels.

    The lower bound on the residual, 1e-6 of the target's size, bounds the weights.
    """
    floor = 1e-6 * target.abs().mean().clamp_min(torch.finfo(target.dtype).tiny)
    if len(pred) <= SAMPLE:
        return _reweight(_affine_by_weight, pred, target, _affine(pred, target), floor, steps)
    pick = torch.randint(len(pred), (SAMPLE,), generator=torch.Generator().manual_seed(0)).to(pred.device)
    few = pred[pick], target[pick]
    start = _reweight(_affine_in_chunks, *few, _affine(*few), floor, steps)
    return _reweight(_affine_in_chunks, pred, target, start, floor, LAST_STEPS)


def _reweight(affine: Callable, pred: Tensor, target: Tensor, start: tuple, floor: Tensor, steps: int):
    """At most `steps` steps from a fit, fewer where it settles."""
    scale, shift = start
    for _ in range(steps):
        new_scale, new_shift = affine(pred, target, scale, shift, floor)
        settled = (new_scale - scale).abs() <= 1e-9 * scale.abs() and (
            new_shift - shift
        ).abs() <= 1e-3 * floor
        scale, shift = new_scale, new_shift
        if settled:
            break
    return scale, shift


def _affine_by_weight(pred: Tensor, target: Tensor, scale: Tensor, shift: Tensor, floor: Tensor):
    """One step: least squares with the weights 1 / residual of the fit before."""
    residual = (scale * pred + shift - target).abs()
    return _affine(pred, target, 1 / residual.clamp_min(floor))


def _affine_in_chunks(pred: Tensor, target: Tensor, scale: Tensor, shift: Tensor, floor: Tensor):
    """The same in sums over chunks that fit in a cache, centered at the means of the first chunk."""
    center_p, center_t = pred[:CHUNK].mean(), target[:CHUNK].mean()
    offset = scale * center_p + shift - center_t
    sums = pred.new_zeros(5)
    for p, t in zip(pred.split(CHUNK), target.split(CHUNK), strict=True):
        p, t = p - center_p, t - center_t
        w = torch.add(offset - t, p * scale).abs_().clamp_min_(floor).reciprocal_()
        wp = w * p
        sums += torch.stack([w.sum(), wp.sum(), w.dot(t), wp.dot(p), wp.dot(t)])
    mean_p, mean_t, square, product = (sums[1:] / sums[0]).unbind()
    variance = square - mean_p * mean_p
    if float(variance) <= 1e-24 * float(center_p + mean_p) ** 2:
        return (center_t + mean_t) / (center_p + mean_p), torch.zeros_like(mean_p)
    new_scale = (product - mean_p * mean_t) / variance
    return new_scale, center_t + mean_t - new_scale * (center_p + mean_p)
