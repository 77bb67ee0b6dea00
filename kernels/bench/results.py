"""The results of a benchmark run: one Timing per shape, weight, mode and rival, and the machine."""

from __future__ import annotations

from dataclasses import dataclass

from .machine import Rates


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median, and as `spread` the medians of the two halves of the run.

    `floor`: the roofline time. `mode`: "eager" or "graph". `kernel`: the kernel or operator with the largest
    share of the time, which shows the backend that torch chose.
    """

    shape: str
    size: tuple[int, int, int, int]
    weight: str
    rival: str
    median: float
    spread: tuple[float, float]
    floor: float
    mode: str
    kernel: str


@dataclass(frozen=True)
class Run:
    """`absent`: one line per rival without a time, with the reason."""

    machine: dict[str, object]
    rates: Rates
    times: list[Timing]
    absent: list[str]
