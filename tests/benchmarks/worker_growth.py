"""How cost grows: seconds and MiB of tensors against pixels, batch, views and scenes, with slopes.

    python tests/benchmarks/worker_growth.py [--most 2048] [--json FILE] [--plot FILE]

The tiny joint network (pixels of a side, batch at 128), a small VGGT of random weights (views of 112 pixels),
and dataset folders of the world that are built, encoded for the intrinsic LoRA and evaluated (scenes of 32
pixels, shards of 16); float32, one thread, processor time of one call after one that warms up; memory is that
of tensors alive at once. A slope is that of the last two points in logarithms, against the number of pixels,
images, views or scenes: 1 is linear, 0 constant, 2 quadratic, as attention over all tokens is in the end.
"""

import argparse
import importlib.util
import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline

BATCHES, VIEWS, VIEW_SIDE = (1, 2, 4, 8), (1, 2, 4, 8, 16), 112
WIDE, HIGH, EDGE, ACROSS = 420, 320, 50, 3
INK, PALE = (40, 40, 48), (225, 225, 232)


def load(name):
    """A program beside this one as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def joint_step(pipeline, side, batch):
    patch = pipeline.config.depth_patch
    shapes = (batch, pipeline.config.in_channels, side // patch, side // patch), (batch, 1, side, side)
    image, depth = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes)
    context = pipeline.encode_text(["a red ball"]).expand(batch, -1, -1)
    at = torch.full((batch,), 0.5)
    return lambda: pipeline.network(image, depth, context, at, at)


def vggt_run(vggt, network, views):
    images = torch.rand(1, views, 3, VIEW_SIDE, VIEW_SIDE, generator=torch.Generator().manual_seed(0))
    return lambda: vggt.run_ours(network, images)


def curves(most, work):
    """Name to (unit, number of units to a call); made one after the other."""
    pipeline, vggt = ModalityForcingPipeline.from_preset("tiny"), load("worker_vggt")
    network = vggt.build(vggt.SMALL, torch.float32)
    sides = [side for side in (128, 256, 512, 1024, 2048) if side <= most]
    return {
        "pixels": {side * side: joint_step(pipeline, side, 1) for side in sides},
        "batch": {count: joint_step(pipeline, 128, count) for count in BATCHES},
        "views": {count: vggt_run(vggt, network, count) for count in VIEWS},
        **load("growth_of_folders").folder_calls(work),
    }


def slope(points):
    (x0, y0), (x1, y1) = points[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)


def draw(found, path):
    """Seconds and MiB on logarithmic axes, each as a share of its largest."""
    image = Image.new("RGB", (WIDE * ACROSS, HIGH * -(-len(found) // ACROSS)), "white")
    pen = ImageDraw.Draw(image)
    for number, (name, rows) in enumerate(found.items()):
        x0, y0 = number % ACROSS * WIDE, number // ACROSS * HIGH
        left, right, top, bottom = x0 + EDGE, x0 + WIDE - 15, y0 + 40, y0 + HIGH - 40
        pen.rectangle((left, top, right, bottom), outline=PALE)
        xs = [math.log(row["count"]) for row in rows["points"]]
        for key, color in (("seconds", (31, 92, 190)), ("mib", (214, 97, 30))):
            ys = [math.log(row[key]) for row in rows["points"]]
            low, high = min(ys), max(ys) + 1e-9
            line = [
                (
                    left + (right - left) * (x - xs[0]) / (xs[-1] - xs[0]),
                    bottom - (bottom - top) * (y - low) / (high - low),
                )
                for x, y in zip(xs, ys, strict=True)
            ]
            pen.line(line, fill=color, width=2)
            ends = f"{rows['points'][0][key]:.3g} to {rows['points'][-1][key]:.3g}"
            text = f"{key} {ends}, slope {rows[key]:.2f}"
            pen.text((left, top - (32 if key == "seconds" else 18)), text, fill=color)
        first, last = rows["points"][0]["count"], rows["points"][-1]["count"]
        pen.text((left, bottom + 8), f"{name}: {first} to {last}, logarithmic axes", fill=INK)
    image.save(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=2048, help="pixels of the largest image's side")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--plot", type=Path, help="draw them here, as a PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    meter, found = load("meters").Processor(), {}
    with tempfile.TemporaryDirectory() as work, torch.no_grad():
        for name, calls in curves(options.most, Path(work)).items():
            points = []
            for count, call in calls.items():
                mib = meter.peak(call)  # and the warm-up
                points.append({"count": count, "seconds": meter.seconds(call), "mib": mib})
                line = "{0:16s} {count:8d} {seconds:9.3f} s {mib:9.2f} MiB\n"
                sys.stdout.write(line.format(name, **points[-1]))
                sys.stdout.flush()
            found[name] = {"points": points} | {
                key: slope([(row["count"], row[key]) for row in points]) for key in ("seconds", "mib")
            }
            sys.stdout.write("{0:16s} slopes {seconds:.2f} and {mib:.2f}\n".format(name, **found[name]))
    if options.json:
        options.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
