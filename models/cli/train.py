"""The command `spatialweave train`."""

from __future__ import annotations

import argparse

from .option_types import path
from .output_lines import write_line


def add_train(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    recipe = option("recipe", type=path)
    recipe.help = "a recipe: JSON with every setting of the run, one of those below or your own"
    option("--output", type=path, help="folder for checkpoints, log and weights; overrides the recipe's")
    resume = option("--resume", action="store_true")
    resume.help = "continue from the newest checkpoint in the output folder, bit for bit"
    command.set_defaults(run=_run_train)


def _run_train(options: argparse.Namespace) -> None:
    from ..core.training.loop import run_recipe
    from ..trainers.builders import BUILDERS

    outcome = run_recipe(options.recipe, BUILDERS, output=options.output, resume=options.resume)
    write_line(f"{outcome.ending} at step {outcome.step}, loss {outcome.loss:.4f}: {outcome.checkpoint}")
