"""Alignment against numpy, SciPy's optimisers and planted truths."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize_scalar

from spatialweave.models.core.geometry import align
from spatialweave.models.core.geometry.align import align_scale, align_scale_shift


def data(outliers=False):
    random = torch.Generator().manual_seed(3)
    pred = torch.rand(2, 6, 8, generator=random) * 4 + 1
    target = torch.stack([2.5 * pred[0] + 0.7, 0.4 * pred[1] - 0.1]) + 0.01 * torch.randn(
        2, 6, 8, generator=random
    )
    mask = torch.rand(2, 6, 8, generator=random) > 0.3
    target = torch.where(mask, target, torch.full_like(target, float("nan")))
    if outliers:
        target[:, 0, :3] = torch.where(mask[:, 0, :3], torch.tensor(100.0), target[:, 0, :3])
    return pred, target, mask


def flat(pred, target, mask, index):
    return pred[index][mask[index]].double().numpy(), target[index][mask[index]].double().numpy()


def test_scale_by_medians_and_least_squares_equals_numpy():
    pred, target, mask = data()
    for index in range(2):
        p, t = flat(pred, target, mask, index)
        assert float(align_scale(pred, target, mask).scale[index]) == pytest.approx(
            np.median(t) / np.median(p)
        )
        fit = np.linalg.lstsq(p[:, None], t, rcond=None)[0][0]
        assert float(align_scale(pred, target, mask, method="least_squares").scale[index]) == pytest.approx(
            fit
        )


def test_scale_l1_is_the_minimum():
    pred, target, mask = data(outliers=True)
    scale = align_scale(pred, target, mask, method="l1").scale
    for index in range(2):
        p, t = flat(pred, target, mask, index)
        best = minimize_scalar(
            lambda s, p=p, t=t: np.abs(s * p - t).sum(),
            bounds=(0, 20),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert np.abs(float(scale[index]) * p - t).sum() <= best.fun * (1 + 1e-9)


def test_scale_shift_least_squares_equals_numpy():
    pred, target, mask = data()
    found = align_scale_shift(pred, target, mask)
    for index in range(2):
        p, t = flat(pred, target, mask, index)
        assert (float(found.scale[index]), float(found.shift[index])) == pytest.approx(
            tuple(np.polyfit(p, t, 1))
        )


def test_scale_shift_l1_reaches_the_linear_programs_minimum():
    pred, target, mask = data(outliers=True)
    found = align_scale_shift(pred, target, mask, method="l1")
    for index in range(2):
        p, t = flat(pred, target, mask, index)
        n = len(p)
        above = np.column_stack([np.stack([p, np.ones(n)], 1), -np.eye(n)])
        below = np.column_stack([-np.stack([p, np.ones(n)], 1), -np.eye(n)])
        cost = np.concatenate([[0, 0], np.ones(n)])
        free = [(None, None)] * 2 + [(0, None)] * n
        best = linprog(cost, np.vstack([above, below]), np.concatenate([t, -t]), bounds=free).fun
        assert np.abs(float(found.scale[index]) * p + float(found.shift[index]) - t).sum() <= best * (
            1 + 1e-4
        )
    assert found.scale.tolist() == pytest.approx([2.5, 0.4], rel=0.02)


@pytest.mark.parametrize("offset", [0.0, 1e4], ids=["near", "far from zero"])
def test_a_large_image_is_fitted_on_a_sample_first_and_as_well(monkeypatch, offset):
    random = torch.Generator().manual_seed(5)
    pred = torch.rand(1, 5000, generator=random, dtype=torch.float64) * 4 + 1 + offset
    target = 1.7 * pred + 0.3 + 0.05 * torch.randn(1, 5000, generator=random, dtype=torch.float64)
    target[0, torch.randperm(5000, generator=random)[:1000]] += 3
    mask = torch.ones(1, 5000, dtype=torch.bool)
    whole = align_scale_shift(pred, target, mask, method="l1")
    monkeypatch.setattr(align, "SAMPLE", 600)
    monkeypatch.setattr(align, "CHUNK", 64)
    quick = align_scale_shift(pred, target, mask, method="l1")
    loss = [float((found.apply(pred) - target).abs().mean()) for found in (whole, quick)]
    assert loss[1] <= loss[0] * (1 + 1e-4), "as near the minimum as the iteration itself has to come"
    assert float(quick.scale) == pytest.approx(1.7, abs=0.01) and bool(quick.scale != whole.scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_counts_inside_the_mask_alone(bad):
    pred = torch.arange(1.0, 13.0).reshape(1, 3, 4)
    spoiled = (2 * pred + 1).index_fill(2, torch.tensor([1]), bad)
    inside = torch.ones(1, 3, 4, dtype=torch.bool).index_fill(2, torch.tensor([1]), False)
    found = align_scale_shift(pred, spoiled, inside)
    assert (float(found.scale), float(found.shift)) == pytest.approx((2, 1))
    with pytest.raises(ValueError, match="Expected finite numbers inside the mask, got NaN or infinity"):
        align_scale_shift(pred, spoiled, torch.ones_like(inside))


def test_a_large_constant_prediction_gets_a_scale_alone(monkeypatch):
    monkeypatch.setattr(align, "SAMPLE", 8)
    found = align_scale_shift(
        torch.full((1, 40), 2.0), torch.full((1, 40), 3.0), torch.ones(1, 40, dtype=torch.bool), method="l1"
    )
    assert (float(found.scale), float(found.shift)) == pytest.approx((1.5, 0))


@pytest.mark.parametrize("method", ["least_squares", "l1"])
def test_exact_affine_relation_is_found(method):
    pred = torch.linspace(1, 3, 24, dtype=torch.float64).reshape(1, 4, 6)
    found = align_scale_shift(pred, 3 * pred - 1.25, torch.ones(1, 4, 6, dtype=torch.bool), method=method)
    assert (float(found.scale), float(found.shift)) == pytest.approx((3, -1.25))
    torch.testing.assert_close(found.apply(pred), 3 * pred - 1.25)


def test_apply_keeps_the_dtype_and_the_batch():
    pred, target, mask = data()
    found = align_scale(pred, target, mask)
    aligned = found.apply(pred)
    assert aligned.dtype == torch.float32
    torch.testing.assert_close(aligned[1], (pred[1].double() * found.scale[1]).float())


def test_constant_prediction_gets_a_scale_alone():
    target = torch.tensor([[1.0, 2.0, 6.0]])
    found = align_scale_shift(torch.full((1, 3), 2.0), target, torch.ones(1, 3, dtype=torch.bool))
    assert (float(found.scale), float(found.shift)) == pytest.approx((1.5, 0))


def test_bad_input_is_worded():
    pred, yes = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="Expected a valid pixel to align by, got none in image 1 of 2"):
        align_scale(pred, pred, torch.tensor([[True], [False]]).expand(2, 3))
    with pytest.raises(ValueError, match="Expected finite numbers inside the mask, got NaN or infinity"):
        align_scale(pred * float("nan"), pred, yes)
    with pytest.raises(ValueError, match="Expected prediction, target and mask of one shape, got "):
        align_scale_shift(pred, pred[:1], yes)
    with pytest.raises(
        ValueError,
        match="Expected a prediction that is not zero, got zero in every valid pixel of image 0, which "
        "no scale can fit",
    ):
        align_scale(pred * 0, pred, yes)
    with pytest.raises(ValueError, match="got a median of 0"):
        align_scale(torch.tensor([[0.0, 0, 1]]), pred[:1], yes[:1])
    with pytest.raises(ValueError, match="Expected a scale method of .*, got 'mean'"):
        align_scale(pred, pred, yes, method="mean")
    with pytest.raises(ValueError, match="Expected a scale and shift method of .*, got 'median'"):
        align_scale_shift(pred, pred, yes, method="median")
