"""The training loop: accumulate, clip, average, log, save, resume. It is independent of the systems.

One optimizer step takes `batch_size` samples, cut into `accumulate * processes` equal slices. Which samples
they are is a function of (seed, epoch), the random numbers of a slice are a function of (seed, step, slice).
So a resumed run continues bit for bit, and two processes compute what one process does with twice the
micro-batches.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from .capture import CapturedPass, check_abilities, record_graph
from .checkpoint import (
    STATE,
    find_latest,
    load_checkpoint,
    load_model,
    read_state,
    save_checkpoint,
    write_json,
)
from .data import OrderedBatches, collate
from .draws import number_slice, seed_draws
from .fit import ENDED, fit_schedule, take_schedule
from .interrupt import graceful_stop, leave_interrupt_to_parent
from .optimizer import (
    AveragedWeights,
    choose_trainable,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from .progress import Log, Meter
from .recipe import Recipe, learning_rate, naming
from .resident import ResidentDataset
from .sources import check_same_recipe, check_sources, write_sources

log = logging.getLogger("spatialweave.training")

Batch = Mapping[str, Any]
Loss = Callable[[nn.Module, Batch, Generator], tuple[Tensor, Mapping[str, Tensor]]]
OnLog = Callable[[dict[str, float]], None]
Ending = Literal["finished", "time", "interrupted"]


@dataclass(frozen=True)
class Task:
    """A system's model, loss and data."""

    model: nn.Module  # everything that is trained, and saved
    loss: Loss  # loss(model, batch, generator) -> (scalar, named scalars)
    dataset: Any  # len() and [index] -> dict of tensors and strings
    collate: Callable[[list], Batch] = collate
    # frozen networks that the loss uses: moved to the device, not saved
    companions: tuple[nn.Module, ...] = ()
    # (output folder, averaged state): writes the weights to ship
    export: Callable[[Path, Mapping[str, Tensor]], None] | None = None
    # what the loss can do, for the recipe's device_noise and capture: draw on its generator's device, else it
    # is given one on the CPU; and be captured: fixed shapes, and no wait for the device
    draws_there: bool = False
    captures: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    ending: Ending
    step: int
    checkpoint: Path
    loss: float  # mean over the last logged steps


Builder = Callable[[Recipe], Task]


def run_recipe(
    recipe: Recipe | str | Path,
    builders: Mapping[str, Builder],
    *,
    output: str | Path | None = None,
    resume: bool = False,
    on_log: OnLog | None = None,
) -> Outcome:
    """Train a recipe. `builders` maps each system's name to the function that makes its Task.

    `on_log` receives every log line; it may raise KeyboardInterrupt, which stops the run as Ctrl-C does:
    saved, and resumable.
    """
    source, started = recipe, time.monotonic()
    if not isinstance(recipe, Recipe):
        recipe = Recipe.read(recipe)
    if output:
        recipe = replace(recipe, output=str(output))
    if not recipe.output:
        raise ValueError(
            "Expected an output folder in the recipe, got none. Add output to it, or give --output."
        )
    if recipe.system not in builders:
        raise ValueError(
            f"Expected a recipe for one of the systems {', '.join(builders)}, got {recipe.system!r}. "
            "Correct system in the recipe."
        )
    if recipe.fit_minutes and resume:
        recipe = take_schedule(recipe)
    latest = find_resume_checkpoint(Path(recipe.output), recipe, resume)  # before anything slow
    with naming(source):
        task = builders[recipe.system](recipe)
    return train(recipe, task, latest=latest, on_log=on_log, started=started)


def train(
    recipe: Recipe, task: Task, *, latest: Path | None = None, on_log: OnLog | None = None,
    started: float | None = None,
) -> Outcome:  # fmt: skip
    """Train `task` into the recipe's output folder, from the checkpoint `latest` if there is one.

    `started`, on time.monotonic's clock, is when the recipe's fit_minutes began; None: now.
    """
    accelerator, deadline = make_accelerator(recipe), math.inf
    try:
        check_abilities(recipe, task, accelerator)
        if recipe.resident:
            task = replace(task, dataset=ResidentDataset(task.dataset, accelerator.device, task.collate))
        if recipe.fit_minutes:
            started = time.monotonic() if started is None else started
            deadline = started + ENDED * 60 * recipe.fit_minutes
            if not latest:
                recipe = fit_schedule(recipe, lambda fitted: Run(fitted, task, accelerator), started)
        run = Run(replace(recipe, fit_minutes=0.0), task, accelerator, deadline)
        if latest:
            run.load(latest)
        elif accelerator.is_main_process:
            write_sources(run.output, run.recipe)
        with graceful_stop() as stop_requested:
            return run.go(stop_requested, on_log)
    finally:
        accelerator.free_memory()
        # else the next run of this process could not choose another precision
        accelerator.state._reset_state()


class Run:
    """One process's part of a training run."""

    def __init__(self, recipe: Recipe, task: Task, accelerator, deadline: float = math.inf):
        self.deadline = deadline  # on time.monotonic's clock
        self.recipe, self.task, self.accelerator, self.output = recipe, task, accelerator, Path(recipe.output)
        self.slices = recipe.accumulate * accelerator.num_processes
        if recipe.batch_size % self.slices:
            raise ValueError(
                f"Expected batch_size as a multiple of {self.slices} (accumulate {recipe.accumulate} times "
                f"{accelerator.num_processes} processes), got {recipe.batch_size}. Change batch_size."
            )
        self.parameters = choose_trainable(task.model, recipe.freeze)
        optimizer = make_optimizer(self.parameters, recipe)
        self.model, self.optimizer = accelerator.prepare(LossModule(task.model, task.loss), optimizer)
        for companion in task.companions:
            companion.to(accelerator.device)
        self.generator = Generator(accelerator.device if recipe.device_noise else "cpu")
        self.captured = (
            CapturedPass(self.run_pass, self.parameters.values(), self.generator, record_graph)
            if recipe.capture
            else None
        )
        self.average = AveragedWeights(self.parameters, recipe.ema if accelerator.is_main_process else 0.0)
        self.step, self.meter, self.log = 0, Meter(accelerator), Log(self.output)
        if accelerator.is_main_process:
            write_json(self.output / "recipe.json", recipe.to_json())

    def go(self, stop_requested: Callable[[], bool], on_log: OnLog | None) -> Outcome:
        recipe, start, first, ending = self.recipe, time.monotonic(), self.step, "finished"
        batches = iter(self.loader())
        hidden = None if self.accelerator.is_main_process else True  # None: shown on a terminal only
        with tqdm(
            total=recipe.last_step,
            initial=first,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=hidden,
        ) as bar:
            while self.step < recipe.last_step and ending == "finished":
                self.train_step(batches)
                self.step += 1
                stopped, seconds = stop_requested(), time.monotonic() - start
                if self.step % recipe.log_every == 0 or self.step == recipe.last_step:
                    record = self.write_log(seconds / (self.step - first))
                    bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)
                    stopped = stopped or self.tell(on_log, record)
                bar.update()
                ending = self.find_ending(stopped, seconds)
                if (
                    self.step % recipe.save_every == 0
                    and self.step < recipe.last_step
                    and ending == "finished"
                ):
                    self.save()
        return Outcome(ending, self.step, self.save(), self.meter.last)

    def train_step(self, batches) -> None:
        """One optimizer step over this process's slices of the batch."""
        recipe, accelerator = self.recipe, self.accelerator
        set_learning_rate(self.optimizer.optimizer, learning_rate(recipe, self.step))
        for micro in range(recipe.accumulate):
            batch = move(next(batches), accelerator.device)
            part = micro * accelerator.num_processes + accelerator.process_index
            number = number_slice(recipe.seed, self.step, part)
            if self.captured:
                loss, logs = self.captured(batch, number)
            else:
                seed_draws(number, self.generator)
                waits = micro + 1 < recipe.accumulate
                with accelerator.no_sync(self.model) if waits else nullcontext():
                    loss, logs = self.run_pass(batch)
            self.meter.add({"loss": loss, **logs})
        if recipe.clip:
            self.meter.add({"grad_norm": accelerator.clip_grad_norm_(self.parameters.values(), recipe.clip)})
        self.optimizer.step()
        if not self.captured:  # whose gradients are kept and overwritten
            self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.step)

    def run_pass(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Forward and backward pass of one slice; gradients are added to."""
        loss, logs = self.model(batch, self.generator)
        self.accelerator.backward(loss / self.recipe.accumulate)
        return loss, logs

    def loader(self) -> torch.utils.data.DataLoader:
        accelerator, workers = self.accelerator, self.recipe.workers
        order = OrderedBatches(
            len(self.task.dataset), self.recipe.batch_size, self.recipe.seed,
            first_step=self.step, slices=self.slices,
            processes=accelerator.num_processes, process=accelerator.process_index,
        )  # fmt: skip
        return torch.utils.data.DataLoader(
            self.task.dataset, batch_sampler=order, collate_fn=self.task.collate, num_workers=workers,
            multiprocessing_context="spawn" if workers else None, worker_init_fn=leave_interrupt_to_parent,
            pin_memory=accelerator.device.type == "cuda" and not self.recipe.resident,
        )  # fmt: skip

    def find_ending(self, stopped: bool, seconds: float) -> Ending:
        """The same on every process: if one was stop_requested to stop, or is out of time, all stop."""
        limit = 60 * self.recipe.max_minutes or math.inf
        late = seconds > limit or time.monotonic() > self.deadline
        if self.accelerator.num_processes > 1:
            flags = torch.tensor([float(stopped), float(late)], device=self.accelerator.device)
            stopped, late = (bool(flag) for flag in self.accelerator.reduce(flags, reduction="sum"))
        return "interrupted" if stopped else "time" if late else "finished"

    def write_log(self, seconds_per_step: float) -> dict[str, float]:
        lr = learning_rate(self.recipe, self.step - 1)
        record = {
            "step": self.step,
            **self.meter.take(self.step),
            "lr": lr,
            "seconds_per_step": round(seconds_per_step, 4),
        }
        if self.accelerator.is_main_process:
            self.log.write(record, last=self.step == self.recipe.last_step)
        return record

    def tell(self, on_log: OnLog | None, record: dict[str, float]) -> bool:
        """Pass a log line to `on_log`; True if it requests a stop."""
        try:
            if on_log and self.accelerator.is_main_process:
                on_log(record)
        except KeyboardInterrupt:
            return True
        return False

    def save(self) -> Path:
        """A checkpoint and the exported weights, by the main process.

        Never of a state whose loss was not finite.
        """
        self.meter.check(self.step)
        folder = self.output / f"step-{self.step:08d}"
        if self.accelerator.is_main_process:
            groups = {
                "model": self.task.model.state_dict(),
                "ema": self.average.tensors,
                "optimizer": optimizer_tensors(self.optimizer.optimizer, self.parameters),
            }
            state = {"samples": self.step * self.recipe.batch_size, "recipe": self.recipe.to_json()}
            folder = save_checkpoint(self.output, self.step, groups, state, keep=self.recipe.keep)
            if self.task.export:
                self.task.export(self.output, self.average.state(self.task.model))
        self.accelerator.wait_for_everyone()
        return folder

    def load(self, folder: Path) -> None:
        groups, state = load_checkpoint(folder, ("model", "ema", "optimizer"))
        load_model(self.task.model, groups["model"], folder)
        load_optimizer_tensors(self.optimizer.optimizer, self.parameters, groups["optimizer"])
        self.step = state["step"]
        if self.accelerator.is_main_process:
            self.average.load(groups["ema"])
            self.log.cut(self.step)
        self.accelerator.wait_for_everyone()
        log.info("resumed %s at step %d", folder, self.step)


class LossModule(nn.Module):
    """Model and loss as one forward, which accelerate wraps for precision and for several processes."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch, generator: Generator):
        return self.loss(self.model, batch, generator)


def make_accelerator(recipe: Recipe):
    """Device and processes as set by `accelerate launch` or torchrun; without them, the one GPU or the CPU.

    Several GPUs: `accelerate launch --no_python --num_processes 2 spatialweave train ...`; several CPU
    processes: `ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 --no-python spatialweave train ...`.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise ImportError(
            "Expected the package accelerate for training, got none. Install it: pip install "
            '"spatialweave[train]".'
        ) from error
    # a stage that does not use some parameters, like text to image without the depth stream, must not wait
    # for
    # their gradients
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=recipe.mixed_precision, kwargs_handlers=[unused])


def find_device() -> torch.device:
    """The device on which a run of this process will train, for work before it begins.

    As accelerate decides.
    """
    on_cpu = (
        os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        or not torch.cuda.is_available()
    )
    return torch.device("cpu") if on_cpu else torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def find_resume_checkpoint(output: Path, recipe: Recipe, resume: bool) -> Path | None:
    """The checkpoint to resume from, None for a new run.

    Another run is neither overwritten nor continued.
    """
    latest = find_latest(output)
    if latest and not resume:
        raise ValueError(
            f"Expected an output folder without a run, got {output} with one at {latest.name}. Resume it, "
            "or choose another output folder."
        )
    if resume and not latest:
        raise ValueError(
            f"Expected a checkpoint to resume from in {output}, got none. Leave resume out to start."
        )
    if latest:
        check_same_recipe(read_state(latest / STATE).get("recipe", {}), recipe.to_json(), latest)
        check_sources(output, recipe)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"Expected to create the output folder {output}, got an error ({error.strerror or error}). "
            "Choose another."
        ) from error
    return latest


def move(batch: Any, device: torch.device) -> Any:
    """Every tensor of a batch, however nested in dicts, to the device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {key: move(value, device) for key, value in batch.items()} if isinstance(batch, Mapping) else batch
