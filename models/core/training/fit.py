"""A schedule that fills a given time: a recipe's `fit_minutes`.

Some steps and a save are timed first, in a folder of their own, and undone. Then everything that the recipe
counts in steps is stretched by one factor, so that reading the data, timing, training and saving together
take that long. The stretched recipe is the run's: it is in the output folder, and run by itself on such a
machine it gives the same weights, however long that takes.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .checkpoint import STATE, find_latest, read_state
from .recipe import Recipe

PLANNED = 0.95  # share of the time that is planned for
ENDED = 0.98  # share after which a run that is slower than it was timed stops; the rest is for its last save
WARM, TIMED, TIMED_SHARE = 3, 5, 0.03  # steps before timing; timed steps and share of the time, at least
SAVE_SECONDS, LOG_SECONDS = 60.0, 5.0  # no more often than that, in a run so short
IN_STEPS = ("steps", "stop", "warmup", "save_every", "log_every")
TIMING = "timing"  # folder inside the output folder, deleted when the steps are timed


def fit_schedule(recipe: Recipe, start_run: Callable[[Recipe], Any], started: float) -> Recipe:
    """The recipe with the schedule that ends fit_minutes after `started`, on time.monotonic's clock.

    `start_run` makes a `loop.Run` of a recipe; the model has its weights of before when this returns.
    """
    folder = Path(recipe.output) / TIMING
    run = start_run(replace(recipe, output=str(folder)))
    if run.accelerator.num_processes > 1:
        raise ValueError(
            f"Expected one process for the recipe's fit_minutes, got {run.accelerator.num_processes}. Run it "
            "in one process, or set steps."
        )
    model = run.task.model
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        step = time_steps(run, TIMED_SHARE * 60 * recipe.fit_minutes)
        begun = time.monotonic()
        run.save()
        save = time.monotonic() - begun
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    model.load_state_dict(before)
    left = started + PLANNED * 60 * recipe.fit_minutes - time.monotonic()
    return plan(recipe, left, step, save)


def time_steps(run: Any, seconds: float) -> float:
    """Seconds of a step of a run, timed over at least that long."""
    batches, count, begun = iter(run.loader()), -WARM, math.inf
    while count < TIMED or time.monotonic() - begun < seconds:
        run.train_step(batches)
        run.step, count = run.step + 1, count + 1
        if count % TIMED == 0:  # else the queue of a card would be counted, not its steps
            synchronize(run.accelerator.device)
        if count == 0:
            begun = time.monotonic()
    return (time.monotonic() - begun) / count


def synchronize(device: torch.device) -> None:
    """Wait until a card has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plan(recipe: Recipe, left: float, step: float, save: float) -> Recipe:
    """The recipe stretched to fill `left` seconds, by the seconds of a step and of a save."""
    saves = min(math.ceil(recipe.last_step / recipe.save_every), 1 + int(max(0.0, left) / SAVE_SECONDS))
    stretched = stretch(recipe, max(1, int((left - saves * save) / step)))
    return replace(
        stretched,
        save_every=max(stretched.save_every, math.ceil(SAVE_SECONDS / step)),
        log_every=max(stretched.log_every, math.ceil(LOG_SECONDS / step)),
    )


def stretch(recipe: Recipe, last_step: int) -> Recipe:
    """The recipe with all that it counts in steps multiplied so that it ends at `last_step`."""
    factor = last_step / recipe.last_step
    scaled = {name: max(1, round(getattr(recipe, name) * factor)) for name in ("save_every", "log_every")}
    steps = max(last_step, round(recipe.steps * factor)) if recipe.stop else last_step
    warmup = min(steps, round(recipe.warmup * factor))
    stop = last_step if recipe.stop else 0
    return replace(recipe, steps=steps, stop=stop, warmup=warmup, fit_minutes=0.0, **scaled)


def take_schedule(recipe: Recipe) -> Recipe:
    """The recipe with the schedule that the run in its output folder was given; as it is if there is none."""
    latest = find_latest(Path(recipe.output))
    if latest is None:
        return recipe
    stored = read_state(latest / STATE).get("recipe", {})
    return replace(recipe, **{name: stored[name] for name in IN_STEPS if name in stored})
