"""Runs a chain of `tiny_chains`: its data beforehand, then its recipes, each for its share of the time."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.training.checkpoint import STATE, find_latest, read_state
from ..core.training.data import MANIFEST
from ..core.training.fit import take_schedule
from ..core.training.loop import find_device, run_recipe
from ..core.training.recipe import Recipe
from ..core.training.sources import check_same_recipe
from .builders import BUILDERS
from .tiny_chains import CHAINS, PACK, DataStep, TrainStep, move_paths

LEAST_MINUTES = 0.02  # of a step: with less the chain stops and goes on at the next call
SCENES_STEP = 64  # scenes come in multiples of a shard of views

RunCommand = Callable[[Sequence[str]], None]  # the words behind `spatialweave`
Say = Callable[[str], None]


@dataclass(frozen=True)
class ChainRequest:
    """Which chain, where it reads and writes, and what it may take."""

    system: str
    minutes: float = 9.0  # for all training of the chain
    data: Path = Path("data")
    runs: Path = Path("runs")
    scenes: int | None = None  # of each dataset, at most, for a trial; None: as the chain says
    workers: int = 1  # processes that render

    @property
    def folders(self) -> dict[str, Path]:
        return {"data": self.data, "runs": self.runs}

    @property
    def scene_limit(self) -> int | None:
        """`scenes`, rounded up to whole shards of views."""
        return self.scenes and -(-self.scenes // SCENES_STEP) * SCENES_STEP


def prepare_chain(request: ChainRequest, run_command: RunCommand, say: Say) -> None:
    """Make the data that needs none of the chain's weights; what is whole is kept, the rest completed."""
    for step in CHAINS[request.system]:
        if isinstance(step, DataStep) and not step.share:
            prepare_data(step, request, run_command, say)
        elif isinstance(step, TrainStep) and step.caches:
            recipe = read_chain_recipe(step, request)
            say(f"reading the data of {step.recipe} once: what it caches is written beside it")
            own = {key: value for key, value in recipe.model.items() if not names_run(value, request)}
            BUILDERS[recipe.system](replace(recipe, model=own))


def prepare_data(step: DataStep, request: ChainRequest, run_command: RunCommand, say: Say) -> None:
    words = command_words(step, request)
    wanted = int(words[words.index("--scenes") + 1]) if "--scenes" in words else 1
    manifest = find_made(step, request)
    if manifest.is_file() and manifest.read_bytes().count(b"\n") >= wanted:
        say(f"{manifest.parent}: there already")
        return
    if words[0] == "world":
        words += ["--workers", str(request.workers)]
    say(f"spatialweave {shlex.join(words)}")
    run_command(words)


def train_chain(request: ChainRequest, run_command: RunCommand, say: Say) -> bool:
    """Train what is not finished; True if all of it is then, False if the time was over or Ctrl-C came.

    Another call with the same request goes on. ValueError if data of `prepare_chain` is missing.
    """
    check_prepared(request)
    steps = [step for step in CHAINS[request.system] if isinstance(step, TrainStep) or step.share]
    deadline = time.monotonic() + 60 * request.minutes
    for number, step in enumerate(steps):
        shares = [each.share for each in steps[number:]]
        part = shares[0] / sum(shares)
        if isinstance(step, DataStep):
            words = command_words(step, request)
            say(f"spatialweave {shlex.join(words)}")
            run_command(words)
        elif not train_step(step, request, deadline, part, say):
            return False
    return True


def train_step(step: TrainStep, request: ChainRequest, deadline: float, part: float, say: Say) -> bool:
    """One recipe, for `part` of the time until `deadline`; True if it is finished."""
    recipe = read_chain_recipe(step, request)
    while not is_finished(recipe):
        begun = find_latest(Path(recipe.output)) is not None
        minutes = part * (deadline - time.monotonic()) / 60
        if minutes < LEAST_MINUTES:
            say(f"{step.recipe}: the time is over; the same command goes on here")
            return False
        say(f"{step.recipe}: {minutes:.2f} minutes{', resumed' if begun else ''}")
        try:
            outcome = run_recipe(replace(recipe, fit_minutes=minutes), BUILDERS, resume=begun)
        except RuntimeError as error:
            if begun or not recipe.capture:
                raise
            say(f"{step.recipe}: not captured, its steps are launched one by one ({error})")
            recipe = replace(recipe, capture=False)
            continue
        say(f"{outcome.ending} at step {outcome.step}, loss {outcome.loss:.4f}: {outcome.checkpoint}")
        if outcome.ending == "interrupted":
            return False
    return True


def is_finished(recipe: Recipe) -> bool:
    """Whether this recipe, stretched or not, was trained to its end; ValueError if another one was."""
    latest = find_latest(Path(recipe.output))
    if latest is None:
        return False
    state, fitted = read_state(latest / STATE), take_schedule(recipe)
    check_same_recipe(state.get("recipe", {}), fitted.to_json(), latest)
    return state["step"] >= fitted.last_step


def read_chain_recipe(step: TrainStep, request: ChainRequest) -> Recipe:
    """The recipe with its paths in the request's folders and its data on the device; on a card also with
    what the chain changes there.
    """
    values: dict[str, Any] = Recipe.read(PACK / step.recipe).to_json()
    for key in ("model", "data", "loss", "output"):
        values[key] = move_paths(values[key], request.folders)
    if request.scene_limit and "scenes" in values["data"]:
        values["data"]["scenes"] = min(values["data"]["scenes"], request.scene_limit)
    values["resident"] = True
    if find_device().type == "cuda":
        values |= step.card
    return Recipe.from_json(values)


def command_words(step: DataStep, request: ChainRequest) -> list[str]:
    """The words of a step's command, its paths in the request's folders."""
    words = [move_paths(word, request.folders) for word in shlex.split(step.command)]
    if request.scene_limit and "--scenes" in words:
        place = words.index("--scenes") + 1
        words[place] = str(min(int(words[place]), request.scene_limit))
    return words


def find_made(step: DataStep, request: ChainRequest) -> Path:
    return Path(move_paths(step.makes, request.folders)) / MANIFEST


def names_run(value: Any, request: ChainRequest) -> bool:
    return isinstance(value, str) and Path(value).is_relative_to(request.runs)


def check_prepared(request: ChainRequest) -> None:
    """ValueError with the command that makes it if any data of the chain is missing."""
    needed = {}
    for step in CHAINS[request.system]:
        if isinstance(step, DataStep) and not step.share:
            made = find_made(step, request)
            needed[str(made.parent)] = made.is_file()
        elif isinstance(step, TrainStep) and step.caches:
            pattern = Path(move_paths(step.caches, request.folders))
            needed[str(pattern)] = any(pattern.parent.glob(pattern.name))
    missing = [name for name, there in needed.items() if not there]
    if missing:
        raise ValueError(
            f"Expected the data of {request.system} made beforehand, got none in {', '.join(missing)}. Make "
            f"it with: spatialweave tiny {request.system} --prepare --data {shlex.quote(str(request.data))}"
        )
