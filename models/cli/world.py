"""The command `spatialweave world`."""

from __future__ import annotations

import argparse

from .option_types import LARGEST_SEED, MOST_PROCESSES, path, whole
from .output_lines import write_line


def add_world(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    option("output", type=path, help="folder for the dataset; an unfinished one is completed")
    option("--scenes", type=whole(1, 10**8), default=1000, help="number of scenes")
    option("--size", type=whole(8, 4096), default=128, help="pixels a side")
    option("--seed", type=whole(-(2**63), LARGEST_SEED), default=0, help="another seed, other scenes")
    option("--split", choices=["train", "test"], default="train", help="the two share no scene")
    kind = option("--kind", choices=["scenes", "edits", "moves"], default="scenes")
    kind.help = "images, pairs before and after an instruction, or pairs of one object's moves"
    layout = option("--layout", choices=["shards", "files"], default="shards")
    layout.help = "safetensors shards, or loose PNG files"
    option("--normals", action="store_true", help="write normals, too")
    option("--workers", type=whole(0, MOST_PROCESSES), default=1, help="processes that render")
    command.set_defaults(run=_run_world)


def _run_world(options: argparse.Namespace) -> None:
    from ..world.export.dataset import export_dataset

    summary = export_dataset(
        options.output,
        count=options.scenes,
        size=options.size,
        seed=options.seed,
        split=options.split,
        kind=options.kind,
        layout=options.layout,
        normals=options.normals,
        workers=options.workers,
    )
    write_line(str(summary))
