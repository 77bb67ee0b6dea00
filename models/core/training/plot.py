"""The loss curve of a run as a PNG, drawn with Pillow: no plotting library is needed to train."""

from __future__ import annotations

import io
import math
from pathlib import Path

from PIL import Image, ImageDraw

from ..export.files import write_file
from ..text_files import TextFileError, decode_text, parse_json

SIZE, LEFT, RIGHT, TOP, BOTTOM = (960, 540), 70, 20, 40, 45
INK, GRID, PAPER = (40, 40, 48), (225, 225, 232), (255, 255, 255)
COLORS = ((31, 92, 190), (214, 97, 30), (34, 139, 94), (150, 70, 170), (190, 40, 70), (110, 110, 40))
SKIP = ("step", "lr", "seconds_per_step", "grad_norm")


def plot_log(log: Path, target: Path) -> None:
    """Every loss of a `log.jsonl` over steps, on a logarithmic axis, smoothed.

    The raw curve is drawn pale behind.
    """
    records = read_log(log)
    curves = {
        name: [(r["step"], r[name]) for r in records if r.get(name, 0) > 0]
        for name in records[-1]
        if name not in SKIP
    }
    curves = {name: points for name, points in curves.items() if points}
    if len(curves) == 2:  # one part: the same curve as the whole
        del curves["loss"]
    image = Image.new("RGB", SIZE, PAPER)
    if curves:
        draw_curves(ImageDraw.Draw(image), curves)
    data = io.BytesIO()
    image.save(data, format="PNG")
    write_file(target, data.getvalue())


def read_log(path: Path) -> list[dict[str, float]]:
    """The records of a `log.jsonl`. An incomplete last line of a killed run is skipped."""
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = parse_json(decode_text(line, source=path.name), source=path.name)
        except TextFileError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def draw_curves(draw: ImageDraw.ImageDraw, curves: dict[str, list[tuple[float, float]]]) -> None:
    steps, values = zip(*(point for points in curves.values() for point in points))
    last, low, high = max(steps), math.log10(min(values)), math.log10(max(values))
    low, high = low - 0.02, max(high, low + 0.1) + 0.02

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + point[0] / last * (SIZE[0] - LEFT - RIGHT)
        return x, TOP + (high - math.log10(point[1])) / (high - low) * (SIZE[1] - TOP - BOTTOM)

    for value in ticks(low, high):
        y = place((0, value))[1]
        draw.line((LEFT, y, SIZE[0] - RIGHT, y), fill=GRID)
        draw.text((LEFT - 8, y), f"{value:g}", fill=INK, anchor="rm")
    draw.rectangle((LEFT, TOP, SIZE[0] - RIGHT, SIZE[1] - BOTTOM), outline=GRID)
    for i in range(6):
        x = place((last * i / 5, values[0]))[0]
        draw.text((x, SIZE[1] - BOTTOM + 8), f"{last * i / 5:.0f}", fill=INK, anchor="mt")
    draw.text((SIZE[0] / 2, SIZE[1] - 6), "step", fill=INK, anchor="mb")
    for i, (name, points) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        draw.line([place(p) for p in points], fill=tuple((c + 2 * 255) // 3 for c in color), width=1)
        draw.line([place(p) for p in smooth(points)], fill=color, width=2)
        draw.text((LEFT + 140 * i, TOP / 2), f"{name} {smooth(points)[-1][1]:.4g}", fill=color, anchor="lm")


def ticks(low: float, high: float) -> list[float]:
    """Round values between 10^low and 10^high: 1, 2 and 5 times powers of ten, or even steps if the range is
    narrow.
    """
    if high - low < 0.8:
        width = (10**high - 10**low) / 5
        power = 10 ** math.floor(math.log10(width))
        step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - width))
        return [
            round(i * step, 12) for i in range(math.ceil(10**low / step), math.floor(10**high / step) + 1)
        ]
    found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    return [value for value in found if low <= math.log10(value) <= high]


def smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Exponential mean over about a fortieth of the curve, with bias correction at its start."""
    weight = 1 - 1 / max(1.0, len(points) / 40)
    total, mean, out = 0.0, 0.0, []
    for step, value in points:
        total, mean = weight * total + 1, weight * mean + value
        out.append((step, mean / total))
    return out
