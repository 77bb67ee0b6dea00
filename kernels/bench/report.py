"""The benchmark as lines of text and as a JSON record, both judged by the goals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .goals import judge
from .results import Run
from .tiles import list_conclusions


def as_lines(run: Run) -> list[str]:
    """The machine; a table of times; the rivals without a time, with the reason; the goals; the conclusions.

    "over ours": ratio to our time in the same mode, or to our eager time where ours has no graph replay.
    "of floor": the roofline time divided by the measured one.
    """
    ours = {(t.shape, t.weight, t.mode): t.median for t in run.times if t.rival == "ours"}
    rates = f"{run.rates.operations / 1e12:.3g} Tflop/s, {run.rates.bytes / 1e9:.3g} GB/s"
    lines = [
        ", ".join(f"{name} {value}" for name, value in run.machine.items() if value is not None)
        + f"; measured {rates}"
    ]
    row = "{:14s} {:>16s} {:9s} {:5s} {:34s} {:>9s} {:>19s} {:>9s} {:>8s} {}".format
    lines.append(
        row("shape", "b h n d", "weight", "mode", "rival", "ms", "halves", "over ours", "of floor", "kernel")
    )
    for t in run.times:
        size, halves = " ".join(map(str, t.size)), f"{t.spread[0]:.3f} {t.spread[1]:.3f}"
        ratio = t.median / ours.get((t.shape, t.weight, t.mode), ours[t.shape, t.weight, "eager"])
        numbers = (f"{t.median:.3f}", halves, f"{ratio:.2f}", f"{t.floor / t.median:.2f}")
        lines.append(row(t.shape, size, t.weight, t.mode, t.rival, *numbers, t.kernel[:60]))
    verdicts = map(str, judge(run.times))
    return [*lines, *run.absent, *verdicts, *list_conclusions(run.times)]


def write_record(path: Path, run: Run) -> None:
    """JSON: the machine, its throughput, the times, the rivals without one, the goals.

    Replaces the file atomically.
    """
    found = asdict(run) | {"goals": [asdict(verdict) for verdict in judge(run.times)]}
    found["conclusions"] = list_conclusions(run.times)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
