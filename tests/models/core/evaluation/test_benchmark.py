"""Alignments of the depth papers against brute force by SciPy, and what a prediction of another size or
with holes costs.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from spatialweave.models.core.evaluation.benchmark import (
    ALIGNMENT_WORDS,
    DepthSample,
    align_prediction,
    average_predictions,
    score_depth_sample,
)
from spatialweave.models.core.geometry.view import View


def scene(seed=0, height=24, width=31):
    random = torch.Generator().manual_seed(seed)
    return 1 + 4 * torch.rand(height, width, generator=random)


def sample(depth, **others):
    mask = others.pop("mask", torch.ones_like(depth, dtype=torch.bool))
    return DepthSample("a", torch.zeros(*depth.shape, 3), depth, mask, True, **others)


def relative(depth):
    return View.from_depth(depth, units="relative")


EXACT = {
    "scale": lambda depth: 3.3 * depth,
    "scale-robust": lambda depth: 3.3 * depth,
    "scale-shift": lambda depth: 3.3 * depth + 0.7,
    "scale-shift-robust": lambda depth: 3.3 * depth + 0.7,
    "disparity-scale-shift": lambda depth: 1 / (0.4 / depth + 0.05),
}


@pytest.mark.parametrize("alignment", EXACT)
def test_what_an_alignment_can_undo_costs_nothing(alignment):
    depth = scene()
    figures = score_depth_sample(relative(EXACT[alignment](depth)), sample(depth), alignment)
    assert figures["absrel"] < 1e-5 and figures["delta1"] == 1 and figures["rmse"] < 1e-4


def test_metric_depth_as_predicted():
    depth = scene()
    metric = View.from_depth(1.1 * depth, units="metric")
    assert score_depth_sample(metric, sample(depth), "none")["absrel"] == pytest.approx(0.1, rel=1e-4)
    with pytest.raises(ValueError, match="Expected a metric prediction and metric truth"):
        score_depth_sample(relative(depth), sample(depth), "none")


@pytest.mark.parametrize("alignment", ["scale-robust", "scale-shift-robust"])
def test_robust_fits_are_the_least_relative_error(alignment):
    """Nelder and Mead find nothing better on data with a tenth of outliers."""
    depth, random = scene(), torch.Generator().manual_seed(1)
    pred = 0.5 * depth + 0.3 + 0.05 * torch.randn(depth.shape, generator=random)
    pred[torch.rand(depth.shape, generator=random) < 0.1] *= 3
    mask = torch.ones_like(depth, dtype=torch.bool)
    p, t = pred.double().numpy().ravel(), depth.double().numpy().ravel()

    def cost(fit):
        return float(np.mean(np.abs(fit[0] * p + (fit[1] if len(fit) > 1 else 0) - t) / t))

    start = [1.0] if alignment == "scale-robust" else [1.0, 0.0]
    best = minimize(
        cost, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    )
    aligned = align_prediction(pred, depth, mask, alignment)
    found = float(((aligned - depth).abs() / depth).mean())
    assert found <= best.fun * (1 + 2e-4)
    plain = align_prediction(pred, depth, mask, "scale" if alignment == "scale-robust" else "scale-shift")
    assert found < float(((plain - depth).abs() / depth).mean())


def test_least_squares_is_numpys():
    depth, random = scene(2), torch.Generator().manual_seed(3)
    pred = 2 * depth + torch.randn(depth.shape, generator=random)
    mask = torch.rand(depth.shape, generator=random) < 0.7
    columns = np.stack((pred[mask].double().numpy(), np.ones(int(mask.sum()))), -1)
    scale, shift = np.linalg.lstsq(columns, depth[mask].double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(
        align_prediction(pred, depth, mask, "scale-shift"), pred * scale + shift, rtol=1e-5
    )


def test_a_prediction_of_another_size_is_resized():
    x = torch.linspace(1, 3, 64).expand(48, 64)
    small = torch.linspace(1 + 2 / 63 * 0.5, 3 - 2 / 63 * 0.5, 32).expand(24, 32)
    assert score_depth_sample(relative(small), sample(x.contiguous()), "scale")["absrel"] < 0.01


def test_pixels_without_a_prediction_count_with_the_full_error():
    depth = scene()
    predicted = depth.clone()
    predicted[:6] = torch.inf
    figures = score_depth_sample(relative(predicted), sample(depth), "scale")
    assert figures["missing"] == pytest.approx(0.25) == figures["absrel"] == 1 - figures["delta1"]
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[:6] = False
    assert score_depth_sample(relative(predicted), sample(depth, mask=mask), "scale")["absrel"] == 0


def test_limits_clamp_the_aligned_prediction():
    depth = torch.full((4, 4), 2.0)
    depth[0, 0] = 9.0
    pred = depth.clone()
    pred[0, 0] = 50.0
    free, held = (
        score_depth_sample(relative(pred), sample(depth, limits=limits), "scale")["rmse"]
        for limits in (None, (0.1, 10.0))
    )
    assert free == pytest.approx(41 / 4) and held == pytest.approx(1 / 4)


def test_an_ensemble_is_better_than_its_members():
    depth, random = scene(), torch.Generator().manual_seed(5)
    noisy = [
        relative((scale * (depth + 0.4 * torch.randn(depth.shape, generator=random))).clamp_min(0.1))
        for scale in (1, 3, 0.2, 7, 1.5)
    ]
    each = [score_depth_sample(view, sample(depth), "scale-shift")["absrel"] for view in noisy]
    together = score_depth_sample(average_predictions(noisy), sample(depth), "scale-shift")["absrel"]
    assert together < 0.75 * min(each) and average_predictions(noisy[:1]) is noisy[0]


def test_what_cannot_be_scored_is_refused():
    depth = scene()
    cases = {
        "Expected an alignment of": (relative(depth), sample(depth), "best"),
        "Expected one depth map for a, got 2": (
            View.from_depth(depth.expand(2, -1, -1), units="relative"), sample(depth), "scale",
        ),
        "Expected pixels of a that are valid in the prediction and in the truth": (
            relative(depth * torch.nan),
            sample(depth),
            "scale",
        ),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words):
            score_depth_sample(*call)
    assert set(ALIGNMENT_WORDS) == {*EXACT, "none"}
