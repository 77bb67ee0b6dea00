"""Angles between poses against SciPy's rotations, and the area under their curve against a
histogram by NumPy.
"""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from spatialweave.models.core.evaluation.pose_metrics import (
    accuracy_curve_area,
    pair_errors,
    score_poses,
)


def poses(count, seed):
    random = np.random.default_rng(seed)
    result = np.tile(np.eye(4), (count, 1, 1))
    result[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    result[:, :3, 3] = random.normal(size=(count, 3))
    return torch.from_numpy(result)


def test_equal_poses_have_no_error_in_any_world_and_scale():
    true = poses(5, 0)
    world = poses(1, 1)[0]
    moved = true @ torch.linalg.inv(world)
    moved[:, :3, 3] = moved[:, :3, 3]
    scaled = moved.clone()
    scaled[:, :3, 3] *= 7
    for found in (true, moved, scaled):
        rotation, translation = pair_errors(found, true)
        assert len(rotation) == 10 and float(rotation.max()) < 1e-5
        assert float(translation.max()) < 1e-4


def test_angles_are_scipys():
    found, true = poses(4, 2), poses(4, 3)
    rotation, translation = pair_errors(found, true)
    for pair, (i, j) in enumerate(combinations(range(4), 2)):
        one, two = ((p[j] @ torch.linalg.inv(p[i])).numpy() for p in (found, true))
        turn = Rotation.from_matrix(one[:3, :3]) * Rotation.from_matrix(two[:3, :3]).inv()
        assert float(rotation[pair]) == pytest.approx(np.degrees(turn.magnitude()), abs=1e-6)
        cosine = one[:3, 3] @ two[:3, 3] / np.linalg.norm(one[:3, 3]) / np.linalg.norm(two[:3, 3])
        assert float(translation[pair]) == pytest.approx(np.degrees(np.arccos(abs(cosine))), abs=1e-5)


def test_the_area_is_that_of_a_histogram():
    """As VGGT's evaluation counts it: one-degree bins, cumulated, averaged."""
    random = torch.Generator().manual_seed(0)
    rotation, translation = (40 * torch.rand(200, generator=random, dtype=torch.float64) for _ in range(2))
    for threshold in (5, 10, 30):
        worst = np.maximum(rotation.numpy(), translation.numpy())
        histogram, _ = np.histogram(worst, bins=np.arange(threshold + 1))
        assert (
            accuracy_curve_area(rotation, translation, threshold)
            == pytest.approx(np.cumsum(histogram / 200).mean(), abs=1e-9)
        )


def test_scores_of_perfect_and_of_hopeless_poses():
    zero, far = torch.zeros(6, dtype=torch.float64), torch.full((6,), 90.0, dtype=torch.float64)
    assert (
        score_poses(zero, zero)
        == {"auc5": 100, "auc10": 100, "auc30": 100, "rotation": 0, "translation": 0}
    )
    assert score_poses(far, zero)["auc30"] == 0 == score_poses(zero, far)["auc30"]


def test_cameras_in_one_place_have_no_direction():
    true = poses(3, 4)
    true[:, :3, 3] = 0
    _, translation = pair_errors(poses(3, 5), true)
    assert not translation.any()


def test_what_is_no_set_of_poses_is_refused():
    with pytest.raises(ValueError, match="Expected two sets of poses"):
        pair_errors(poses(3, 0), poses(4, 0))
    with pytest.raises(ValueError, match="Expected at least 2 poses"):
        pair_errors(poses(1, 0), poses(1, 0))
