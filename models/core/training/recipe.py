"""Recipe: everything that decides a training run, as a frozen dataclass and as JSON. No torch."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..text_files import TextFileError, read_json_object, show_path

Schedule = Literal["constant", "cosine"]
Precision = Literal["no", "bf16"]

# What a resumed run may change: when it stops and what it writes, never what it computes before that.
CHANGEABLE = (
    "steps", "stop", "max_minutes", "fit_minutes", "save_every", "keep", "log_every", "workers", "resident",
    "output",
)  # fmt: skip

_LEAST = {
    "seed": 0, "steps": 1, "batch_size": 1, "accumulate": 1, "warmup": 0, "stop": 0,
    "save_every": 1, "keep": 1, "log_every": 1, "workers": 0,
}  # fmt: skip
_SHARES = ("decay", "final_lr", "ema")


@dataclass(frozen=True)
class Recipe:
    """One training run.

    `model`, `data` and `loss` belong to the system, which validates them; the rest is validated here.
    """

    system: str
    steps: int
    preset: str = "tiny"
    seed: int = 0
    batch_size: int = 32  # samples of one optimizer step, over all processes and micro-batches
    accumulate: int = 1  # micro-batches into which a process cuts its part of the batch
    lr: float = 1e-4
    # parameter name prefix -> factor on lr; the longest prefix counts
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()  # parameter name prefixes that are frozen
    # prefixes of the parameters whose matrices torch's Muon trains; AdamW trains all others
    muon: tuple[str, ...] = ()
    warmup: int = 0  # steps of linear warm-up from 0
    schedule: Schedule = "constant"
    decay: float = 0.0  # "constant" only: the last share of the steps, in which lr falls linearly to final_lr
    final_lr: float = 0.0  # lr at the end of "cosine" or of the decay, as a share of lr
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0  # on matrices; vectors and scalars have none
    clip: float = 1.0  # largest gradient norm; 0 does not clip
    ema: float = 0.999  # decay of the averaged weights; 0 ships the last weights instead
    mixed_precision: Precision = "no"
    workers: int = 0  # data processes
    resident: bool = False  # the whole dataset lies on the device, and batches are gathered there
    device_noise: bool = False  # the loss draws its random numbers on the device: others than on the CPU
    capture: bool = False  # forward and backward pass as one CUDA graph, on one card
    # end after this step, with the lr schedule of all `steps`: the first part of a staged run; 0 runs
    # all
    stop: int = 0
    max_minutes: float = 0.0  # stop and save after this long; 0 has no limit
    # time the steps first, then stretch everything counted in steps so that the whole run takes this long;
    # 0 takes the steps as they are. See fit.py
    fit_minutes: float = 0.0
    save_every: int = 1000
    keep: int = 2  # number of checkpoints to keep
    log_every: int = 20
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""

    def __post_init__(self) -> None:
        for name in ("freeze", "muon", "betas"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("system", "preset", "output"):
            self._check(name, isinstance(getattr(self, name), str), "a string")
        self._check("system", bool(self.system), "the name of a system")
        for name, least in _LEAST.items():
            self._check(
                name,
                _is_whole(getattr(self, name)) and getattr(self, name) >= least,
                f"a whole number of at least {least}",
            )
        self._check("lr", is_number(self.lr) and self.lr > 0, "a number above 0")
        for name in ("weight_decay", "clip", "max_minutes", "fit_minutes"):
            self._check(
                name, is_number(getattr(self, name)) and getattr(self, name) >= 0, "a number of at least 0"
            )
        for name in _SHARES:
            self._check(
                name, is_number(getattr(self, name)) and 0 <= getattr(self, name) <= 1, "a number from 0 to 1"
            )
        self._check("ema", self.ema < 1, "below 1, or the average would never move")
        betas = self.betas if isinstance(self.betas, tuple) else ()
        self._check(
            "betas",
            len(betas) == 2 and all(is_number(b) and 0 <= b < 1 for b in betas),
            "two numbers in [0, 1)",
        )
        for name, options in (("schedule", get_args(Schedule)), ("mixed_precision", get_args(Precision))):
            self._check(name, getattr(self, name) in options, f"one of {', '.join(options)}")
        self._check_tables()
        self._check_sums()

    def _check_tables(self) -> None:
        for name in ("lr_scale", "model", "data", "loss"):
            self._check(name, isinstance(getattr(self, name), Mapping), "a JSON object")
        scales = self.lr_scale.values()
        self._check(
            "lr_scale",
            all(is_number(s) and s > 0 for s in scales),
            "prefixes with factors above 0 (freeze is for 0)",
        )
        for name in ("freeze", "muon"):
            value = getattr(self, name)
            listed = isinstance(value, tuple) and all(isinstance(prefix, str) and prefix for prefix in value)
            self._check(name, listed, "a list of name prefixes")

    def _check_sums(self) -> None:
        for name in ("resident", "device_noise", "capture"):
            self._check(name, isinstance(getattr(self, name), bool), "true or false")
        whole = self.resident and self.device_noise and self.accumulate == 1 and not self.workers
        self._check(
            "capture",
            whole or not self.capture,
            "false without resident and device_noise, with workers, or with an accumulate above 1",
        )
        self._check(
            "batch_size",
            self.batch_size % self.accumulate == 0,
            f"a multiple of accumulate, {self.accumulate}",
        )
        self._check("warmup", self.warmup <= self.steps, f"at most the {self.steps} steps of the run")
        self._check("stop", self.stop <= self.steps, f"at most the {self.steps} steps of the run")
        self._check(
            "decay",
            self.schedule == "constant" or self.decay == 0,
            'left out when schedule is "cosine", which falls by itself',
        )
        self._check(
            "max_minutes",
            not (self.fit_minutes and self.max_minutes),
            "0 beside fit_minutes, which ends a run by itself",
        )

    def _check(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise ValueError(
                f"Expected the recipe's {name} to be {expected}, got {getattr(self, name)!r}. Correct {name}."
            )

    @property
    def last_step(self) -> int:
        return self.stop or self.steps

    def to_json(self) -> dict[str, Any]:
        """A plain dict of JSON values; `from_json` restores an equal recipe."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """From a plain dict; an unknown or missing key is a ValueError."""
        if not isinstance(values, Mapping):
            raise ValueError(
                f"Expected a JSON object as the recipe, got a {type(values).__name__}. Write it as {{...}}."
            )
        check_keys(values, [f.name for f in fields(cls)], "recipe")
        missing = [name for name in ("system", "steps") if name not in values]
        if missing:
            raise ValueError(
                f"Expected {' and '.join(missing)} in the recipe, got none. Every recipe has its system and "
                "its number of steps."
            )
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """From a JSON file; errors name the file."""
        try:
            return cls.from_json(read_json_object(path))
        except OSError as error:
            raise ValueError(
                f"Expected to read the recipe {show_path(path)}, got an error: {error.strerror or error}. "
                "Check the path."
            ) from error
        except TextFileError:
            raise  # whose message names the file
        except ValueError as error:
            raise ValueError(f"{str(error).removesuffix('.')} (in {show_path(path)}).") from error


@contextmanager
def naming(source: Recipe | str | Path) -> Iterator[None]:
    """Around the reading of a recipe and the files it names: errors are prefixed with the recipe's file,
    which has to be corrected.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(source, Recipe) or show_path(source) in str(error):
            raise
        raise ValueError(f"{show_path(source)}: {error}") from error


def check_keys(values: Mapping[str, Any], known: list[str], what: str) -> None:
    """Refuse unknown keys, each with its nearest known key."""
    unknown = [key for key in values if key not in known]
    if not unknown:
        return
    near = {key: difflib.get_close_matches(str(key), known, 1, 0.5) for key in unknown}
    named = ", ".join(
        f"{key!r} (did you mean {near[key][0]!r}?)" if near[key] else repr(key) for key in unknown
    )
    raise ValueError(
        f"Expected the keys {', '.join(known)} in the {what}, got the unknown keys {named}. Remove or "
        "rename them."
    )


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of step 0, 1, ...

    Before the factors of `lr_scale`: warm-up, then the schedule, from the step alone.
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / (recipe.warmup + 1)
    if recipe.schedule == "cosine":
        done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, done))
    else:
        length = recipe.decay * recipe.steps
        fall = 1.0 if length == 0 else min(1.0, max(0.0, (recipe.steps - step) / length))
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * fall)


def is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
