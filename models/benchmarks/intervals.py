"""Statistics of repeated measurements: mean and standard error, whether a difference between two methods is
significant, and the interval of a proportion."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, t

CONFIDENCE = 0.95  # two-sided, by Student's t: with three values 4.3 standard errors


def summarize_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error (None for a single seed) and the value of each seed; all None if any is NaN."""
    if any(math.isnan(value) for value in values):
        return {"mean": None, "error": None, "per_seed": [None] * len(values)}
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "error": error, "per_seed": list(values)}


def significant_sign(differences: Sequence[float]) -> int:
    """1 or -1 if the mean of paired differences is above or below 0 at CONFIDENCE, else 0.

    At least two are needed.
    """
    if len(differences) < 2:
        return 0
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half_width = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error
    mean = statistics.fmean(differences)
    return 1 if mean > half_width else -1 if mean < -half_width else 0


def bootstrap_interval(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of independent values at CONFIDENCE: percentiles of the means of `draws` samples
    with replacement. At least two values are needed."""
    if len(values) < 2:
        raise ValueError(f"Expected at least two values, got {len(values)}. Measure more.")
    found, generator = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    means = [found[generator.integers(len(found), size=len(found))].mean() for _ in range(draws)]
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def proportion_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a proportion at CONFIDENCE; it holds for small counts and for all or none."""
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    share = hits / count
    shrink = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / shrink
    half_width = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / shrink
    return max(0.0, middle - half_width), min(1.0, middle + half_width)
