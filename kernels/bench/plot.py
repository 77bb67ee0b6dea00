"""The benchmark as a bar chart: per shape, weight and mode the ratio of each rival's time to ours."""

from __future__ import annotations

from PIL import Image, ImageDraw

from .results import Run

ROW, LEFT, WIDTH, MOST = 16, 460, 480, 4.0  # pixels; the scale ends at four times our time
INK, LINE, FASTER, SLOWER = (30, 30, 34), (120, 120, 128), (70, 130, 180), (205, 110, 60)


def draw(run: Run) -> Image.Image:
    """An image with one bar per rival, clipped at the end of the scale; beyond the line ours is faster."""
    ours = {
        (timing.shape, timing.weight, timing.mode): timing.median
        for timing in run.times
        if timing.rival == "ours"
    }
    bars = [timing for timing in run.times if timing.rival != "ours"]
    image = Image.new("RGB", (LEFT + WIDTH + 70, ROW * (len(bars) + 2)), "white")
    pen = ImageDraw.Draw(image)
    pen.text((8, 4), "time of each rival over ours (medians of one run)", fill=INK)
    for number, timing in enumerate(bars, 1):
        base = ours.get(
            (timing.shape, timing.weight, timing.mode), ours[timing.shape, timing.weight, "eager"]
        )
        ratio, top = timing.median / base, ROW * number + 6
        stop = LEFT + WIDTH * min(ratio, MOST) / MOST
        pen.text((8, top), f"{timing.shape}, weight {timing.weight}, {timing.mode}: {timing.rival}", fill=INK)
        pen.rectangle((LEFT, top + 1, stop, top + ROW - 4), fill=FASTER if ratio >= 1 else SLOWER)
        pen.text((stop + 4, top), f"{ratio:.2f}", fill=INK)
    pen.line((LEFT + WIDTH / MOST, ROW, LEFT + WIDTH / MOST, image.height), fill=LINE)
    return image
