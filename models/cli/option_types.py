"""What may be typed for an option: numbers within limits, and paths that are some. argparse shows the sentence and the usage."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

LARGEST_SEED = 2**64 - 1  # of torch's generators
MOST_STEPS = 10_000  # of a sampler: its table of noise levels is as long
MOST_PROCESSES = 256
DIGITS = 25  # more are no number that an option takes, and Python refuses to read very many


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text) if len(text) <= DIGITS else None
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"Expected a whole number from {least} to {most}, got {_show(text)}.")
        return value

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """The type of an option that takes a number from `least` to `most`; NaN is none."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"Expected a number from {least:g} to {most:g}, got {_show(text)}.")
        return value

    return read


def path(text: str) -> Path:
    """The type of an option that takes a path: an empty one would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("Expected a path, got an empty one. Name a file or folder; the current folder is '.'.")
    return Path(text)


def find_device(name: str | None) -> str | None:
    """A device that torch knows and that is there; ValueError for others. None stays None."""
    import torch  # late: help needs none

    if name is None:
        return None
    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:  # of torch without CUDA: AssertionError
        reason = " ".join(str(error).split(".")[0].split())[:200]
        raise ValueError(f"Expected a device that is there, such as cpu or cuda, got {name!r} ({reason}). Choose another one.") from error
    return name


def _show(text: str) -> str:
    return repr(text if len(text) <= 2 * DIGITS else f"{text[: 2 * DIGITS]}...")
