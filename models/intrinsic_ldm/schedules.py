"""The weight w(l, t) of intrinsic keys for image queries, equations 2 and 3. Pure functions of numbers.

t is the DDPM timestep, 0 (clean) to 999 (noise); other noise levels are converted at equal signal-to-noise
ratio (core/diffusion/ddpm.py). l is the layer number, in one of two numberings, see layers.py.
w acts at sampling only; in training w = 1 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """w as a function of layer and timestep, and its maximum over the rest of the run."""

    def weight(self, layer: int, t: float) -> float:
        """w(l, t), at least 0."""

    def ceiling(self, t: float) -> float:
        """The maximum of w over all layers and all timesteps up to t (t and less noise)."""


@dataclass(frozen=True)
class Drop:
    """Equation 2: w = 1 in the layers L for t <= tau, else 0.

    The paper's L = 3..7 and tau = 900 are for SD2.1.
    """

    layers: frozenset[int]
    tau: float = 900.0

    def __post_init__(self):
        check_number("tau", self.tau, 0, 1000)

    def weight(self, layer: int, t: float) -> float:
        return 1.0 if layer in self.layers and t <= self.tau else 0.0

    def ceiling(self, t: float) -> float:
        return 1.0 if self.layers else 0.0


@dataclass(frozen=True)
class Gaussian:
    """Equation 3: alpha exp(-(t - tau)^2 / sigma^2), the same in every layer; no 1/2 in the exponent."""

    alpha: float = 1.0
    tau: float = 800.0
    sigma: float = 100.0

    def __post_init__(self):
        check_number("alpha", self.alpha, 0, 100)
        check_number("tau", self.tau, 0, 1000)
        check_number("sigma", self.sigma, 1e-3, 10000)

    def weight(self, layer: int, t: float) -> float:
        return self.alpha * math.exp(-(((t - self.tau) / self.sigma) ** 2))

    def ceiling(self, t: float) -> float:
        return self.weight(0, min(t, self.tau))


@dataclass(frozen=True)
class Constant:
    """The same w everywhere: 1 is concatenation as in training (GeoWizard's attention), 0 no coupling."""

    value: float = 1.0

    def __post_init__(self):
        check_number("weight", self.value, 0, 100)

    def weight(self, layer: int, t: float) -> float:
        return self.value

    def ceiling(self, t: float) -> float:
        return self.value


@dataclass(frozen=True)
class Curve:
    """User-defined w(t): linear between points (t, w), constant outside, the same in every layer."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self):
        if not self.points:
            raise ValueError(
                'Expected points "t: w" in the curve, got none. Write some, for example 1000: 0, 800: 1, '
                '500: 0.'
            )
        for t, w in self.points:
            check_number("t of a point", t, 0, 1000)
            check_number("w of a point", w, 0, 100)
        times = [t for t, _ in self.points]
        if len(set(times)) < len(times):
            raise ValueError(
                "Expected one point of the curve at each t, got two at t = "
                f"{max(t for t in times if times.count(t) > 1):g}. Leave one of them out."
            )
        object.__setattr__(self, "points", tuple(sorted(self.points)))

    def weight(self, layer: int, t: float) -> float:
        if t <= self.points[0][0]:
            return self.points[0][1]
        for (low, w_low), (high, w_high) in zip(self.points, self.points[1:]):
            if t <= high:
                return w_low + (w_high - w_low) * (t - low) / (high - low)
        return self.points[-1][1]

    def ceiling(self, t: float) -> float:
        return max([self.weight(0, t), *(w for at, w in self.points if at <= t)])


@dataclass(frozen=True)
class Cut:
    """Another schedule with weights below `threshold` set to 0.

    Where w is 0 in every layer the image equals the base model's, and its rows may run alone.
    """

    schedule: Schedule
    threshold: float = 0.0

    def __post_init__(self):
        check_number("cut_below", self.threshold, 0, 1)

    def weight(self, layer: int, t: float) -> float:
        return self._cut(self.schedule.weight(layer, t))

    def ceiling(self, t: float) -> float:
        return self._cut(self.schedule.ceiling(t))

    def _cut(self, w: float) -> float:
        return w if w >= self.threshold else 0.0


def read_curve(text: str) -> Curve:
    """ "1000: 0, 800: 1, 500: 0" as a Curve; points are separated by commas, semicolons or line breaks."""
    points = []
    for item in filter(
        None, (piece.strip() for piece in text.replace(";", ",").replace("\n", ",").split(","))
    ):
        try:
            t, w = (float(number) for number in item.split(":"))
        except ValueError:
            raise ValueError(
                f'Expected points "t: w" in the curve, got {item!r}. Write them as in 1000: 0, 800: 1, 500: '
                '0.'
            ) from None
        points.append((t, w))
    return Curve(tuple(points))


def read_layers(text: str) -> frozenset[int]:
    """ "3-7" or "1, 4-6" as a set of layer numbers."""
    numbers: set[int] = set()
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        first, _, last = item.partition("-")
        try:
            low, high = int(first), int(last or first)
        except ValueError:
            raise ValueError(
                f'Expected layer numbers and ranges, got {item!r}. Write them as in "3-7" or "1, 4-6".'
            ) from None
        if high < low or high - low > 1000:
            raise ValueError(
                "Expected a range of layers from the lower number to the higher, at most 1000 apart, got "
                f"{item!r}. Correct it."
            )
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def check_number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN too
        raise ValueError(
            f"Expected {name} of the schedule from {low:g} to {high:g}, got {value}. Choose a number in that "
            "range."
        )


OFF = Constant(0.0)
