"""Output of a run: means of the reported numbers, `log.jsonl`, `loss.png`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .plot import plot_log, read_log

LOG, PLOT = "log.jsonl", "loss.png"
PLOT_EVERY = 10  # log lines


class Meter:
    """Means of what the loss reports between two log lines, summed on the device so that no step
    synchronizes.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.last = math.nan

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value = torch.as_tensor(value, device=self.accelerator.device).detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, step: int) -> dict[str, float]:
        """Means over steps, micro-batches and processes; resets the sums."""
        self.check(step)
        means = torch.stack([self.sums[name] / self.counts[name] for name in self.sums])
        values = dict(zip(self.sums, self.accelerator.reduce(means, reduction="mean").tolist(), strict=True))
        self.sums, self.counts, self.last = {}, {}, values["loss"]
        return values

    def check(self, step: int) -> None:
        """FloatingPointError, on every process, if any loss since the last line was infinite or NaN."""
        if "loss" not in self.sums:
            return
        if not bool(torch.isfinite(self.accelerator.reduce(self.sums["loss"], reduction="sum"))):
            raise FloatingPointError(
                f"Expected a finite loss, got NaN or infinity near step {step}. Lower lr or clip harder; "
                "the last checkpoint is still good."
            )


class Log:
    """The log file of an output folder, and its image."""

    def __init__(self, output: Path):
        self.path, self.plot, self.lines = output / LOG, output / PLOT, 0

    def write(self, record: Mapping[str, float], *, last: bool) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.lines += 1
        if last or self.lines % PLOT_EVERY == 1:
            plot_log(self.path, self.plot)

    def cut(self, step: int) -> None:
        """Delete lines logged after `step`, so that a resumed run logs no step twice."""
        if self.path.is_file():
            lines = [json.dumps(record) + "\n" for record in read_log(self.path) if record["step"] <= step]
            self.path.write_text("".join(lines), encoding="utf-8")
