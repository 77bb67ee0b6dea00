"""The command `spatialweave weights`."""

from __future__ import annotations

import argparse

from .option_types import path
from .output_lines import write_line

ACTIONS = ["list", "verify", "download"]


def add_weights(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    option("action", nargs="?", choices=ACTIONS, default="list", help="what to do")
    name = option("name", nargs="?")
    name.help = "one file by its name in the list; by default all, but download requires one"
    models = option("--models", type=path, action="append")
    models.help = "ComfyUI's models folder; may be repeated, downloads go to the first"
    command.set_defaults(run=_run_weights)


def _run_weights(options: argparse.Namespace) -> None:
    from .published_files import run

    run(options.action, options.name, options.models or [], write_line)
