"""Alignment, mesh, stereo, PLY and EXR against their libraries: processor seconds and memory, in one run.

    python tests/benchmarks/worker_exports.py [COMFYUI] [--side 4096] [--rounds 3] [--json FILE]

One thread. Ours and the library take turns; medians, and the median of the ratios. The memory is the most
that one further run of ours took above its inputs, results included, in a process of its own: the system's
mark of resident memory, set back when the inputs are made. Libraries: numpy's lstsq for the robust alignment
(which has no equal: one least squares on the same pixels, picked out beforehand), plyfile, OpenEXR, ComfyUI's
triangulation of a MoGe point map for the mesh (its folder as COMFYUI; ours includes the points), and kornia's
remap of the image by each eye's disparity for stereo (a backward warp, without occlusion and holes).
"""

import argparse
import gc
import json
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
from spatialweave.models.core.geometry.points import depth_to_points, find_intrinsics
from spatialweave.models.core.geometry.stereo import nearness, stereo_pair
from spatialweave.models.core.geometry.view import View

JOBS = ("robust alignment", "PLY", "EXR", "mesh", "stereo")
MARK = Path("/proc/self/clear_refs")  # Linux: "5" sets the mark of resident memory back


def scene(side):
    """Depth and image of a wavy floor with a step."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, side),) * 2, indexing="ij")
    depth = 2 + x + 0.5 * torch.sin(9 * y) + (x > 0.6) * 2.0
    return depth, torch.rand(side, side, 3, generator=generator)


def alignment(depth, image, folder, comfyui):
    target = depth * 1.7 + 0.3
    target[::5] += 3
    target += 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(depth.shape, generator=torch.Generator().manual_seed(2)) > 0.1
    columns = np.stack([depth[mask].double().numpy(), np.ones(int(mask.sum()))], 1)
    values = target[mask].double().numpy()
    return (
        lambda: align_scale_shift(depth[None], target[None], mask[None], method="l1"),
        lambda: np.linalg.lstsq(columns, values, rcond=None),
    )


def ply(depth, image, folder, comfyui):
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


def exr(depth, image, folder, comfyui):
    import OpenEXR

    planes = {"Z": depth.numpy(), **{name: image[..., i].numpy().copy() for i, name in enumerate("RGB")}}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    return (
        lambda: (folder / "ours.exr").write_bytes(encode_exr(planes)),
        lambda: OpenEXR.File(header, dict(planes)).write(str(folder / "theirs.exr")),
    )


def mesh(depth, image, folder, comfyui):
    view = View.from_depth(depth[None], units="relative", image=image[None])
    ours = partial(view_to_mesh, view, fov_degrees=60.0)
    if comfyui is None:
        return ours, None
    sys.path.insert(0, str(comfyui))
    from comfy.ldm.moge.geometry import triangulate_grid_mesh

    return ours, partial(triangulate_grid_mesh, depth_to_points(view.depth, find_intrinsics(view, 60.0))[0])


def stereo(depth, image, folder, comfyui):
    from kornia.geometry.transform import remap

    view = View.from_depth(depth[None], units="relative", image=image[None])
    planes = view.image.movedim(-1, 1).contiguous()
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in depth.shape), indexing="ij")

    def library():
        half = (nearness(view) - 0.5) * 0.015 * depth.shape[1]
        return [remap(planes, x[None] + shift, y[None], align_corners=True) for shift in (half, -half)]

    return partial(stereo_pair, view), library


# name to (ours, the library's or None) of inputs made beforehand
MAKERS = dict(zip(JOBS, (alignment, ply, exr, mesh, stereo), strict=True))


def resident(which):
    """MiB of this process: "VmRSS" now, "VmHWM" the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{which}:"))


def weigh(make):
    """MiB above the inputs, results included; where the system's mark cannot be set back, None."""
    ours, _ = make()
    gc.collect()
    try:
        MARK.write_text("5")
    except OSError:
        return None
    before = resident("VmRSS")
    kept = ours()
    return resident("VmHWM") - before if kept is not None else None


def seconds(run):
    began = time.process_time()
    run()
    return time.process_time() - began


def measure(make, command, rounds):
    ours, library = make()
    pairs = [(seconds(ours), seconds(library) if library else None) for _ in range(rounds)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {"seconds": statistics.median(own for own, _ in pairs), "mib": json.loads(printed)}
    if library:
        found["library_seconds"] = statistics.median(other for _, other in pairs)
        found["ratio"] = statistics.median(own / other for own, other in pairs)
    return found


def show(name, row):
    memory = "       -" if row["mib"] is None else f"{row['mib']:8.0f}"
    library = f"{row['library_seconds']:8.2f} s   ratio {row['ratio']:5.2f}" if "ratio" in row else ""
    return f"{name:18s} {row['seconds']:8.2f} s {memory} MiB   {library}\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comfyui", type=Path, nargs="?", help="its folder, for the mesh")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--weigh", choices=JOBS, help="only the memory of one, in MiB")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # ComfyUI reads the command line, too
    where, sys.argv = options.comfyui, sys.argv[:1]
    with tempfile.TemporaryDirectory() as folder:

        def make(name):
            return MAKERS[name](*scene(options.side), Path(folder), where)

        if options.weigh:
            sys.stdout.write(json.dumps(weigh(partial(make, options.weigh))) + "\n")
            return
        figures = {}
        for name in options.jobs:
            command = [sys.executable, "-P", __file__, "--side", str(options.side), "--weigh", name]
            figures[name] = measure(partial(make, name), command, options.rounds)
            sys.stdout.write(show(name, figures[name]))
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps({"side": options.side, "jobs": figures}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
