"""The command `spatialweave reconstruct`: its options, and the request that they make."""

from __future__ import annotations

import argparse

from .option_types import check_device, number, path, whole
from .output_lines import write_line


def add_reconstruct(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    pictures = option("pictures", nargs="+", type=path, metavar="PICTURE")
    pictures.help = "image files of one still scene, of any sizes; the first one's camera is the common frame"
    option("--out", type=path, required=True, help="a new folder for the files")
    weights = option("--weights", type=path)
    weights.help = "a VGGT file; by default the tiny network, which knows plain rendered solids"
    fit = option("--fit", choices=("pad", "crop"), default="pad")
    fit.help = "pad: every pixel is seen; crop: as the published code, tall images lose top and bottom"
    side = option("--longer-side", type=whole(0, 2048), default=0, metavar="PIXELS")
    side.help = "of the images as the network sees them; 0 is the size it was trained at"
    source = option("--source", choices=("depth", "point"), default="depth")
    source.help = "the head that the depth is from"
    queries = option("--global-queries", type=whole(0, 10**6), default=0, metavar="N")
    queries.help = "attention over all views on so many tokens at a time; 0 is all at once"
    tolerance = option("--tolerance", type=number(0, 0.99), default=0.03)
    tolerance.help = "of a depth; a point that other views see through beyond it is dropped; 0: none is"
    option("--device", default="cpu", help="where the network runs: cpu, cuda")
    command.set_defaults(run=_run_reconstruct)


def _run_reconstruct(options: argparse.Namespace) -> None:
    from .reconstruct_scene import ReconstructRequest, run_reconstruct

    request = ReconstructRequest(
        pictures=tuple(options.pictures),
        output=options.out,
        weights=options.weights,
        fit=options.fit,
        longer_side=options.longer_side,
        source=options.source,
        queries=options.global_queries,
        tolerance=options.tolerance,
        device=check_device(options.device),
    )
    for line in run_reconstruct(request):
        write_line(line)
