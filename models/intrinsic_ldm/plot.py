"""Heat map of w over the steps of a run and the layers of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..core.diffusion.ddpm import ddpm_to_sigma
from .layers import Layer, Reading
from .schedules import Schedule

LEFT, TOP, RIGHT, BOTTOM = 70, 34, 66, 40  # margins around the heat map, in pixels
FIELD = 560, 320
PAPER, INK, QUIET = (255, 255, 255), (30, 30, 36), (120, 120, 130)
STOP, STOPPED = "w stays 0: the maps' pass may stop here", (24, 92, 160)
LOW, HIGH = np.array([236, 238, 244]), np.array([178, 58, 18])  # colors of w = 0 and of the maximum


def weight_table(
    schedule: Schedule, layers: Sequence[Layer], reading: Reading, times: Sequence[float]
) -> np.ndarray:
    """w as (layers, times), the layers in running order."""
    return np.array([[schedule.weight(layer.number(reading), t) for t in times] for layer in layers])


def find_stop(schedule: Schedule, times: Sequence[float]) -> int | None:
    """Index of the first time from which on w is 0 in every layer and the maps' pass may stop, or None."""
    return next((index for index, t in enumerate(times) if schedule.ceiling(t) == 0), None)


def plot_weights(
    schedule: Schedule, layers: Sequence[Layer], reading: Reading, times: Sequence[float], *, steps: bool
) -> np.ndarray:
    """The table as an image (H, W, 3), uint8.

    The x axis is time from noise (left) to clean (right), the y axis the layers in running order from the
    top. `steps`: the times are the steps of one run, drawn with equal widths; else they are DDPM timesteps at
    equal distances. A line marks the time from which on w stays 0 and the maps need no pass.
    """
    table = weight_table(schedule, layers, reading, times)
    top = max(1.0, float(table.max()))
    cells = LOW + (HIGH - LOW) * (table / top)[..., None]
    field = Image.fromarray(cells.round().astype(np.uint8)).resize(FIELD, Image.Resampling.NEAREST)
    page = Image.new("RGB", (LEFT + FIELD[0] + RIGHT, TOP + FIELD[1] + BOTTOM), PAPER)
    page.paste(field, (LEFT, TOP))
    pen = ImageDraw.Draw(page)
    pen.rectangle((LEFT - 1, TOP - 1, LEFT + FIELD[0], TOP + FIELD[1]), outline=QUIET)
    pen.text((LEFT, 4), "w, the weight of intrinsic keys for image queries", fill=INK)
    _mark_times(pen, times, steps)
    _mark_stop(pen, find_stop(schedule, times), len(times))
    _mark_layers(pen, [layer.number(reading) for layer in layers], reading)
    _mark_scale(page, pen, top)
    return np.asarray(page)


def _mark_times(pen: ImageDraw.ImageDraw, times: Sequence[float], steps: bool) -> None:
    count = len(times)
    for index in sorted({round(tick * (count - 1) / 5) for tick in range(6)}):
        x = LEFT + FIELD[0] * (index + 0.5) / count
        label = (
            f"step {index + 1}\nt {times[index]:.0f}"
            if steps
            else f"t {times[index]:.0f}\nsigma {ddpm_to_sigma(times[index]):.3g}"
        )
        pen.line((x, TOP + FIELD[1], x, TOP + FIELD[1] + 4), fill=QUIET)
        pen.text((x - 22, TOP + FIELD[1] + 7), label, fill=INK, spacing=1)


def _mark_stop(pen: ImageDraw.ImageDraw, stop: int | None, count: int) -> None:
    """A line between the last time with a nonzero weight and the first without."""
    if stop is None:
        return
    x, width = LEFT + round(FIELD[0] * stop / count), pen.textlength(STOP)
    pen.line((x, TOP - 4, x, TOP + FIELD[1] - 1), fill=STOPPED, width=2)
    pen.text((min(max(LEFT, x - width / 2), LEFT + FIELD[0] - width), TOP - 15), STOP, fill=STOPPED)


def _mark_layers(pen: ImageDraw.ImageDraw, numbers: Sequence[int], reading: Reading) -> None:
    """A label per run of layers with the same number, where there is room."""
    pen.text((6, TOP - 16), "stage" if reading == "stages" else "block", fill=INK)
    height, drawn, start = FIELD[1] / len(numbers), -99.0, 0
    for index, number in enumerate(numbers):
        if index + 1 < len(numbers) and numbers[index + 1] == number:
            continue
        y = TOP + height * (start + index + 1) / 2
        if y - drawn >= 11:
            pen.text((LEFT - 26, y - 6), str(number), fill=INK)
            drawn = y
        start = index + 1


def _mark_scale(page: Image.Image, pen: ImageDraw.ImageDraw, top: float) -> None:
    ramp = LOW + (HIGH - LOW) * np.linspace(1, 0, FIELD[1])[:, None, None]
    page.paste(
        Image.fromarray(ramp.round().astype(np.uint8)).resize((14, FIELD[1])), (LEFT + FIELD[0] + 14, TOP)
    )
    for value in (0.0, top / 2, top):
        pen.text((LEFT + FIELD[0] + 32, TOP + FIELD[1] * (1 - value / top) - 6), f"{value:.3g}", fill=INK)
