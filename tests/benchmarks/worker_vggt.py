"""What VGGT takes on the CPU by the number of views: our order of work against the published one, which keeps
all entries and runs the dense head on all views at once. The same weights, in one process on one thread, turn
by turn.

    python tests/benchmarks/worker_vggt.py [--shape small] [--views 1 4 8 32] [--side 112] [--rounds 3]
        [--json FILE]

Processor seconds (the median), the peak of the tensors alive at once beside the weights, both ratios, and the
largest difference of the depth. `--shape vggt_1b` is the released size with random weights, in bfloat16 with
float32 heads: 3.4 GB beside what a run takes.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from pathlib import Path

import torch

from spatialweave.models.vggt.config import PRESETS, VggtConfig
from spatialweave.models.vggt.memory import estimate_memory
from spatialweave.models.vggt.network import Vggt

# as deep as the released network, at a sixteenth of its width
SMALL = VggtConfig(
    img_size=112, embed_dim=64, num_heads=4, backbone_depth=4, backbone_num_heads=4, dpt_features=32,
    dpt_out_channels=(16, 32, 64, 64),
    camera_trunk_depth=1, camera_num_heads=4, heads=("camera", "depth"),
)  # fmt: skip
SHAPES = {"small": SMALL, **PRESETS}


def load_meters():
    spec = importlib.util.spec_from_file_location("meters", Path(__file__).with_name("meters.py"))
    meters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(meters)
    return meters


def build(config, dtype):
    """Random weights, of which every one matters."""
    network = Vggt(config, dtype=dtype).train(False).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in network.named_parameters():
        if value.ndim > 1:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
        else:
            value.fill_(1.0 if name.endswith("weight") else 0.1)
    return network


def run_ours(network, images):
    return network(images, heads=("camera", "depth"))


def run_published(network, images):
    encoded = network.aggregator(images, range(network.config.depth))
    return network.predict(encoded, images.shape[-2:], heads=("camera", "depth"), views_at_once=0)


def measure(network, views, side, rounds, meter):
    images = torch.rand(1, views, 3, side, side, generator=torch.Generator().manual_seed(views))
    ways, row = {"ours": run_ours, "published": run_published}, {"views": views}
    with torch.no_grad():
        found = {name: way(network, images).depth for name, way in ways.items()}
        row["difference"] = float((found["ours"] - found["published"]).abs().max())
        for name, way in ways.items():
            row[f"{name}_peak_mib"] = round(meter.peak(lambda way=way: way(network, images)), 2)
        times = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(meter.seconds(lambda way=way: way(network, images)))
    row |= {f"{name}_seconds": round(statistics.median(values), 3) for name, values in times.items()}
    width = next(network.aggregator.parameters()).dtype.itemsize
    row["estimate_mib"] = round(estimate_memory(network.config, views, (side, side), width) / 2**20, 2)
    row["memory_ratio"] = round(row["ours_peak_mib"] / row["published_peak_mib"], 3)
    row["time_ratio"] = round(row["ours_seconds"] / row["published_seconds"], 3)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config, meter = SHAPES[options.shape], load_meters().Processor()
    network = build(config, torch.bfloat16 if options.shape == "vggt_1b" else torch.float32)
    rows = [measure(network, views, options.side, options.rounds, meter) for views in options.views]
    figures = {"shape": options.shape, "side": options.side, "torch": torch.__version__, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
