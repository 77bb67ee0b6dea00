"""Types of options: numbers within limits, paths that are not empty. argparse shows their errors."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

LARGEST_SEED = 2**64 - 1  # that torch's generators take
MOST_STEPS = 10_000  # of a sampler, whose table of noise levels has this length
MOST_PROCESSES = 256
DIGITS = 25  # longer numbers are out of any limit, and Python refuses to parse very long ones


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text) if len(text) <= DIGITS else None
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            expected = f"a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(f"Expected {expected}, got {_show(text)}.")
        return value

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """The type of an option that takes a number from `least` to `most`, but not NaN."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            expected = f"a number from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"Expected {expected}, got {_show(text)}.")
        return value

    return read


def path(text: str) -> Path:
    """The type of an option that takes a path: an empty one would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "Expected a path, got an empty one. Name a file or folder; the current folder is '.'."
        )
    return Path(text)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels of 'WxH'."""
    found = re.fullmatch(r"([0-9]{1,5})[x,]([0-9]{1,5})", text.strip().lower())
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (16 <= width <= 1024 and 16 <= height <= 1024):
        raise ValueError(
            "Expected a size as WIDTHxHEIGHT with sides from 16 to 1024 pixels, such as 128x128, "
            f"got {text[:40]!r}."
        )
    return width, height


def check_device(name: str | None) -> str | None:
    """The name of a device, None for the default; ValueError if torch cannot use it here."""
    import torch  # late: help does not need it

    if name is None:
        return None
    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        # torch without CUDA raises AssertionError
        reason = " ".join(str(error).split(".")[0].split())[:200]
        raise ValueError(
            f"Expected an available device, such as cpu or cuda, got {name!r} ({reason}). Choose another one."
        ) from error
    return name


def _show(text: str) -> str:
    return repr(text if len(text) <= 2 * DIGITS else f"{text[: 2 * DIGITS]}...")
