"""Alignment, mesh, stereo, PLY and EXR against their libraries: processor seconds and memory, in one run.

    python tests/benchmarks/worker_exports.py [--side 4096] [--rounds 3] [--json FILE]

One thread. Ours and the library take turns; medians, the median of the ratios, and the most memory above the
inputs that one further run of ours took, in a process of its own. Libraries: numpy's lstsq for the robust
alignment (which has no equal; one least squares on the same pixels), plyfile, OpenEXR. Mesh and stereo have
none, and are only timed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from spatialweave.models.core.export.exr import encode_exr
from spatialweave.models.core.export.ply import encode_ply
from spatialweave.models.core.geometry.align import align_scale_shift
from spatialweave.models.core.geometry.mesh import view_to_mesh
from spatialweave.models.core.geometry.stereo import stereo_pair
from spatialweave.models.core.geometry.view import View

JOBS = ("robust alignment", "PLY", "EXR", "mesh", "stereo")


def scene(side):
    """Depth and image of a wavy floor with a step."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, side),) * 2, indexing="ij")
    depth = 2 + x + 0.5 * torch.sin(9 * y) + (x > 0.6) * 2.0
    return depth, torch.rand(side, side, 3, generator=generator)


def jobs(side, folder):
    """Name to (inputs made beforehand, ours, the library's or None)."""
    depth, image = scene(side)

    def alignment():
        target = depth * 1.7 + 0.3
        target[::5] += 3
        target += 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
        pred, mask = depth[None], torch.ones(1, side, side, dtype=torch.bool)
        columns = np.stack([depth.double().flatten().numpy(), np.ones(side * side)], 1)
        return (
            lambda: align_scale_shift(pred, target[None], mask, method="l1"),
            lambda: np.linalg.lstsq(columns, target.double().flatten().numpy(), rcond=None),
        )

    def ply():
        import plyfile

        points, colors = torch.stack([depth] * 3, -1).reshape(-1, 3), image.reshape(-1, 3)

        def library():
            kind = [(name, "f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
            records = np.empty(len(points), kind)
            for axis, name in enumerate("xyz"):
                records[name] = points[:, axis].numpy()
            levels = (colors * 255).round().to(torch.uint8).numpy()
            for axis, name in enumerate(("red", "green", "blue")):
                records[name] = levels[:, axis]
            element = plyfile.PlyElement.describe(records, "vertex")
            plyfile.PlyData([element]).write(str(folder / "theirs.ply"))

        return lambda: (folder / "ours.ply").write_bytes(encode_ply(points, colors)), library

    def exr():
        import OpenEXR

        planes = {"Z": depth.numpy(), **{name: image[..., i].numpy().copy() for i, name in enumerate("RGB")}}
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        return (
            lambda: (folder / "ours.exr").write_bytes(encode_exr(planes)),
            lambda: OpenEXR.File(header, dict(planes)).write(str(folder / "theirs.exr")),
        )

    def view():
        return View.from_depth(depth[None], units="relative", image=image[None])

    return {
        "robust alignment": alignment,
        "PLY": ply,
        "EXR": exr,
        "mesh": lambda: (partial(view_to_mesh, view(), fov_degrees=60.0), None),
        "stereo": lambda: (partial(stereo_pair, view()), None),
    }


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def weigh(name, side):
    """MiB above the inputs, printed by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        ours, _ = jobs(side, Path(folder))[name]()
        before = peak_mib()
        ours()
        sys.stdout.write(f"{peak_mib() - before}\n")


def seconds(run):
    began = time.process_time()
    run()
    return time.process_time() - began


def measure(name, side, rounds, folder):
    ours, library = jobs(side, folder)[name]()
    pairs = [(seconds(ours), seconds(library) if library else None) for _ in range(rounds)]
    command = [sys.executable, "-P", __file__, "--side", str(side), "--weigh", name]
    memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {"seconds": statistics.median(own for own, _ in pairs), "mib": memory}
    if library:
        found["library_seconds"] = statistics.median(other for _, other in pairs)
        found["ratio"] = statistics.median(own / other for own, other in pairs)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--weigh", choices=JOBS, help="only the memory of one, in MiB")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.weigh:
        weigh(options.weigh, options.side)
        return
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.jobs:
            row = figures[name] = measure(name, options.side, options.rounds, Path(folder))
            library = f"{row['library_seconds']:8.2f} s   ratio {row['ratio']:5.2f}" if "ratio" in row else ""
            sys.stdout.write(f"{name:18s} {row['seconds']:8.2f} s   {row['mib']:7.0f} MiB   {library}\n")
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps({"side": options.side, "jobs": figures}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
