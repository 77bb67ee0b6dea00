"""The command `spatialweave convert`."""

from __future__ import annotations

import argparse

from .option_types import path
from .output_lines import write_line

WEIGHT_FORMATS = ["bf16", "fp8", "int8", "nvfp4"]


def add_convert(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    option("source", type=path, help="a Modality Forcing network in bfloat16, float16 or float32")
    option("target", type=path, help="the file to write; it must not exist")
    formats = option("--format", choices=WEIGHT_FORMATS, required=True)
    formats.help = "precision of the transformer blocks; the depth head stays float32"
    command.set_defaults(run=_run_convert)


def _run_convert(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..modality_forcing.quantize import convert_network

    with tqdm(unit="B", unit_scale=True, desc=options.format, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        written = convert_network(options.source, options.target, options.format, show)
    write_line(f"{written}: {written.stat().st_size:,} bytes, from {options.source.stat().st_size:,}")
