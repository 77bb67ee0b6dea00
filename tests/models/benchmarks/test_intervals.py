"""Statistics over seeds, against scipy's own test."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, sem, ttest_1samp

from spatialweave.models.benchmarks.intervals import (
    CONFIDENCE,
    bootstrap_interval,
    proportion_interval,
    significant_sign,
    summarize_seeds,
)


def test_mean_and_standard_error_are_scipys():
    values = [1.0, 1.5, 4.0, 2.5]
    summary = summarize_seeds(values)
    assert summary["mean"] == pytest.approx(np.mean(values)) and summary["error"] == pytest.approx(
        sem(values)
    )
    assert summary["per_seed"] == values


def test_one_seed_has_no_error_and_nan_has_no_figure():
    assert summarize_seeds([2.0]) == {"mean": 2.0, "error": None, "per_seed": [2.0]}
    assert summarize_seeds([2.0, math.nan]) == {"mean": None, "error": None, "per_seed": [None, None]}


@pytest.mark.parametrize("seed", range(20))
def test_significance_is_that_of_a_paired_t_test(seed):
    differences = np.random.default_rng(seed).normal(0.8 * (seed % 3 - 1), 1.0, size=3 + seed % 4)
    significant = ttest_1samp(differences, 0.0).pvalue < 1 - CONFIDENCE
    assert significant_sign(differences.tolist()) == (np.sign(differences.mean()) if significant else 0)


def test_both_signs_are_among_the_cases():
    assert significant_sign([1.0, 1.1, 0.9]) == 1 and significant_sign([-1.0, -1.1, -0.9]) == -1
    assert significant_sign([1.0]) == 0 and significant_sign([1.0, 2.0, 3.0]) == 0


@pytest.mark.parametrize(("hits", "count"), [(0, 12), (7, 9), (188, 200), (200, 200)])
def test_the_interval_of_a_proportion_is_wilsons(hits, count):
    expected = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="wilson")
    assert proportion_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_bootstrap_interval_is_scipys():
    values = np.random.default_rng(3).exponential(size=60)
    found = bootstrap_interval(values.tolist())
    exact = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found == pytest.approx((exact.low, exact.high), abs=0.02) and found[1] - found[0] > 0.3
    assert found == bootstrap_interval(values.tolist())
    with pytest.raises(ValueError, match="Expected at least two values, got 1"):
        bootstrap_interval([1.0])
