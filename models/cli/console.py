"""The console program `spatialweave COMMAND`: main, the parser, and the table of commands.

Each command is a file beside this one: it declares its options and imports what it runs only when it runs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from .bench import add_bench
from .benchmark import add_benchmark
from .convert import add_convert
from .demo import add_demo
from .doctor import add_doctor
from .edit import add_edit
from .evaluate import add_evaluate
from .gallery import add_gallery
from .help_texts import Formatter, epilog
from .intrinsics import add_intrinsics
from .joyai import add_joyai
from .last_resort import DEBUG, run_command
from .reconstruct import add_reconstruct
from .spatial_diff import add_spatial_diff
from .tiny import add_tiny
from .train import add_train
from .weights import add_weights
from .world import add_world


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 on success. Any error is one sentence on standard error."""
    chosen = ["spatialweave"]

    def run() -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        options = build_parser().parse_args(arguments)
        chosen.append(options.command)
        options.run(options)

    return run_command(lambda: " ".join(chosen), run)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatialweave",
        description="Images that know their geometry.",
        formatter_class=Formatter,
        epilog=f"{DEBUG}=1 in the environment shows the traceback of any error, for a report.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary, add in _COMMANDS:
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=epilog(name), formatter_class=Formatter
        )
        add(command)
    return parser


_COMMANDS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
    (
        "demo",
        "Generate an image and its depth with the tiny model that ships in the pack, and write every format.",
        add_demo,
    ),
    ("gallery", "Build a web page of runs of the demo: image, orbit and contact sheet of each.", add_gallery),
    (
        "edit",
        "Move an object of an image as an instruction says, with the tiny editor that ships in the pack.",
        add_edit,
    ),
    (
        "reconstruct",
        "Depth, cameras and one point cloud of several images of one still scene, with VGGT.",
        add_reconstruct,
    ),
    ("train", "Train a network by a recipe.", add_train),
    ("tiny", "Train a tiny system's weights from nothing, all its recipes in a given time.", add_tiny),
    ("evaluate", "Measure a model on the held-out scenes of the procedural world.", add_evaluate),
    (
        "world",
        "Write a dataset of the procedural world: images, depth, normals, segmentation, lines and captions.",
        add_world,
    ),
    (
        "intrinsics",
        "Prepare datasets for I-LDM: images with depth, normals, segmentation and lines; their latents.",
        add_intrinsics,
    ),
    (
        "joyai",
        "Prepare datasets of edits for JoyAI-Image: published layouts; latents and encodings.",
        add_joyai,
    ),
    (
        "spatial_diff",
        "Prepare datasets of edits for SpatialDiff: latents, text encodings.",
        add_spatial_diff,
    ),
    (
        "bench",
        "Time the attention op against its alternatives on this machine, after checking its numbers.",
        add_bench,
    ),
    (
        "benchmark",
        "Score a model on published depth and pose benchmarks, beside the published figures.",
        add_benchmark,
    ),
    (
        "convert",
        "Quantize a Modality Forcing network for ComfyUI, in a few hundred megabytes of memory.",
        add_convert,
    ),
    (
        "weights",
        "List published weights with size, SHA-256, license, folder; verify the files on disk; download one.",
        add_weights,
    ),
    (
        "doctor",
        "Report which backends of the attention op run on this machine, and why others do not.",
        add_doctor,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
