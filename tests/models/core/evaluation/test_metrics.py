"""Metrics against hand-worked numbers."""

import math

import pytest
import torch

from spatialweave.models.core.evaluation import metrics

YES = torch.ones(1, 1, 4, dtype=torch.bool)
TARGET = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
PRED = torch.tensor([[[1.1, 2.0, 3.0, 16.0]]])  # errors .1, 0, 1, 8; ratios 1.1, 1, 1.333, 2


def test_depth_figures_by_hand():
    found = metrics.score_depth(PRED, TARGET, YES)
    logs = [math.log(1.1), 0, math.log(0.75), math.log(2)]
    mean = sum(logs) / 4
    assert found == pytest.approx(
        {
            "absrel": (0.1 + 0 + 0.25 + 1) / 4,
            "delta1": 2 / 4,
            "delta2": 3 / 4,  # 1.25 squared is 1.5625
            "delta3": 3 / 4,  # 1.25 cubed is 1.953
            "rmse": math.sqrt((0.01 + 0 + 1 + 64) / 4),
            "silog": 100 * math.sqrt(sum((x - mean) ** 2 for x in logs) / 4),
        },
        rel=1e-6,
    )


def test_perfect_prediction():
    assert metrics.score_depth(TARGET, TARGET, YES) == {
        "absrel": 0,
        "delta1": 1,
        "delta2": 1,
        "delta3": 1,
        "rmse": 0,
        "silog": 0,
    }


def test_silog_ignores_scale_and_the_others_do_not():
    assert metrics.si_log(3 * PRED, TARGET, YES) == pytest.approx(metrics.si_log(PRED, TARGET, YES))
    assert metrics.abs_rel(3 * TARGET, TARGET, YES) == pytest.approx(2)


def test_masked_pixels_do_not_count_and_pictures_weigh_equally():
    target = torch.stack([TARGET[0], TARGET[0]])
    pred = torch.stack([TARGET[0] * 2, TARGET[0]])
    target[0, 0, 1:] = float("nan")
    mask = torch.isfinite(target)
    assert metrics.abs_rel(pred, target, mask) == pytest.approx(0.5)  # one pixel of 1, four of 0
    assert metrics.delta(pred, target, mask) == pytest.approx(0.5)


def test_delta_fails_predictions_that_are_no_depth():
    assert metrics.delta(torch.tensor([[[-1.0, 0.0, 4.0, 8.0]]]), TARGET, YES) == pytest.approx(0.5)


def test_normal_angle_by_hand():
    target = torch.tensor([[[[0.0, 0, -1], [0.0, 0, -1], [1.0, 0, 0], [0.0, 1, 0]]]])
    pred = torch.tensor([[[[0.0, 0, -2], [0.0, 1, -1], [0.0, 1, 0], [0.0, -1, 0]]]])  # 0, 45, 90, 180 degrees
    assert metrics.normal_angle(pred, target, YES) == pytest.approx((0 + 45 + 90 + 180) / 4)
    assert metrics.normal_angle(pred, target, torch.tensor([[[True, True, False, False]]])) == pytest.approx(
        22.5
    )
    tiny = torch.tensor([[[[1e-4, 0.0, -1.0]]]])
    assert metrics.normal_angle(tiny, target[:, :, :1], YES[..., :1]) == pytest.approx(
        math.degrees(1e-4), rel=1e-4
    )


def test_bad_input_is_worded():
    with pytest.raises(ValueError, match="Expected prediction, target and mask of one shape, got "):
        metrics.abs_rel(PRED, TARGET, YES[..., :2])
    with pytest.raises(ValueError, match="Expected a valid pixel to score, got none in image 0 of 1"):
        metrics.rmse(PRED, TARGET, ~YES)
    with pytest.raises(
        ValueError, match="Expected finite numbers inside the mask, got NaN or infinity in image"
    ):
        metrics.rmse(PRED * float("inf"), TARGET, YES)
    with pytest.raises(
        ValueError, match="Expected target depths above 0 inside the mask, got depths of 0 or below"
    ):
        metrics.abs_rel(PRED, TARGET * 0, YES)
    with pytest.raises(
        ValueError, match="Expected predicted depths above 0, which have a logarithm, got 4 pixels"
    ):
        metrics.si_log(-PRED, TARGET, YES)


def test_patch_steps_tell_borders_from_the_inside_by_hand():
    """A row of four pixels in patches of two: steps of log depth .01, .03, .02, the middle one at a border.
    """
    logs = torch.tensor([0.0, 0.01, 0.04, 0.06]).double()
    depth, mask = logs.exp()[None, None].expand(1, 2, 4), torch.ones(1, 2, 4, dtype=torch.bool)
    border, inner = metrics.patch_steps(depth, mask, 2)
    # along columns nothing steps: one pair of rows inside a patch, four times 0
    assert border == pytest.approx(0.03, abs=1e-9) and inner == pytest.approx((0.01 + 0.02) * 2 / 8, abs=1e-9)


def test_patch_steps_leave_out_what_the_mask_does_and_cap_outlines():
    depth, mask = torch.tensor([[[1.0, 50.0, 50.0, 1.0]]]), torch.ones(1, 1, 4, dtype=torch.bool)
    border, inner = metrics.patch_steps(depth, mask, 2)
    assert (border, inner) == pytest.approx((0.0, metrics.LARGEST_STEP))
    mask[..., 3] = False
    depth[..., 3] = float("nan")
    assert metrics.patch_steps(depth, mask, 2) == pytest.approx((0.0, metrics.LARGEST_STEP))
