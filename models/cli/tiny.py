"""The command `spatialweave tiny`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..trainers.tiny_chains import CHAINS
from .option_types import MOST_PROCESSES, number, path, whole
from .output_lines import write_line


def add_tiny(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    option("system", choices=list(CHAINS), help="whose weights")
    minutes = option("--minutes", type=number(0.1, 100_000), default=9.0)
    minutes.help = "for all of the training; the schedules are fitted into it. The same command goes on"
    prepare = option("--prepare", action="store_true")
    prepare.help = "only make the data that the training reads: on a machine with many cores, needs no card"
    option("--workers", type=whole(0, MOST_PROCESSES), default=1, help="processes that render, of --prepare")
    scenes = option("--scenes", type=whole(1, 10**8))
    scenes.help = "of each dataset, at most, rounded up to 64: for a trial; by default as the recipes say"
    option("--data", type=path, default=Path("data"), help="folder of the datasets")
    option("--runs", type=path, default=Path("runs"), help="folder of the runs and their weights")
    device = option("--device", choices=["auto", "cpu", "cuda"], default="auto")
    device.help = "auto: a card if there is one. Batches that fill a card are taken on a card alone"
    command.set_defaults(run=_run_tiny)


def _run_tiny(options: argparse.Namespace) -> None:
    _choose_device(options.device)
    from ..trainers.tiny_run import ChainRequest, prepare_chain, train_chain

    request = ChainRequest(
        options.system, options.minutes, options.data, options.runs, options.scenes, options.workers
    )
    if options.prepare:
        prepare_chain(request, _run_words, write_line)
        write_line(f"{options.system}: the data is there")
    elif train_chain(request, _run_words, write_line):
        write_line(f"{options.system}: trained")
    else:
        write_line(f"{options.system}: not finished; the same command goes on")


def _choose_device(device: str) -> None:
    """As accelerate is told, before it and torch are asked; ValueError if there is no card for cuda."""
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    from ..core.training.loop import find_device

    if device == "cuda" and find_device().type != "cuda":
        raise ValueError(
            "Expected a CUDA card for --device cuda, got none that torch can use. Choose --device cpu."
        )


def _run_words(words: Sequence[str]) -> None:
    """Another command of this console, in this process."""
    from .console import build_parser

    options = build_parser().parse_args(list(words))
    options.run(options)
