"""Writes files whole or not at all: a temporary file beside the target is renamed at the end."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..geometry.view import Units, View
from ..text_files import show_path

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another disk",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another disk",
    errno.EFBIG: "the file would be larger than this system allows; choose another disk or a smaller image",
    errno.EACCES: "the folder may not be written to; choose another one or change its permissions",
    errno.EPERM: "the folder may not be written to; choose another one or change its permissions",
    errno.EROFS: "the disk is read-only; choose another one",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.EEXIST: "a part of this path is a file, not a folder; choose another folder",
    errno.EISDIR: "a folder has this name; choose another name",
    errno.ENAMETOOLONG: "the name is too long for this disk; choose a shorter one",
}

_LONGEST_NAME = 250  # characters; disks take 255, and a partial file's name is five longer

_UNITS = {
    "relative": "relative",
    **dict.fromkeys(("metric", "m", "meter", "meters", "metre", "metres"), "metric"),
}
_LONGEST_SHOWN = 60  # characters of a wrong value in a message

CAMERA = "intrinsics"  # in pixels of the depth map, row by row


class ExportError(OSError):
    """A file could not be written.

    The message is one sentence for the user, ``errno`` the system's number.
    """

    def __str__(self) -> str:
        return self.strerror


class UnstatedError(ValueError):
    """Neither the file nor the caller states what its numbers mean.

    ``missing`` names the arguments that would.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ("units",)) -> None:
        super().__init__(message)
        self.missing = missing


def write_file(path: str | os.PathLike, data: bytes) -> Path:
    """Write ``data`` whole to ``path``, creating its folders.

    On failure raise ExportError and leave an older file unchanged.
    """
    path = Path(path)
    try:
        part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise export_error(error, path) from error
    # no name at all, a NUL in it, or characters that this system's names cannot hold
    except ValueError as error:
        raise ExportError(
            errno.EINVAL,
            f"Cannot write {str(path)!r}: it is not a file name ({error}). Choose another one.",
        ) from error
    return path


def export_error(error: OSError, path: Path) -> ExportError:
    """The system's refusal to write ``path`` as a sentence."""
    number = _find_cause(error, path)
    return ExportError(number, f"Cannot write {path}: {_REASONS.get(number, error.strerror or str(error))}.")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which takes the name ``path`` when the block ends, or goes if the block fails.

    ExportError if there is anything of that name: nothing is overwritten.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, "taken", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except OSError as error:
        if path.exists() or part.exists():
            taken = path if path.exists() else part
            raise ExportError(
                errno.EEXIST, f"Cannot write {path}: {taken.name} exists already. Choose another name."
            ) from error
        raise export_error(error, path) from error
    try:
        yield part
        os.rename(part, path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise error if isinstance(error, ExportError) else export_error(error, path) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _find_cause(error: OSError, path: Path) -> int | None:
    """The system's number of the error; Windows reports a folder in the way as "access denied" and a long
    name as "not found".
    """
    if os.path.isdir(path):
        return errno.EISDIR
    return errno.ENAMETOOLONG if len(path.name) > _LONGEST_NAME else error.errno


def one_picture(view: View) -> View:
    """Return a View of batch 1 with something to write, or raise a ValueError that says how to get one."""
    if len(view) != 1:
        raise ValueError(
            f"Expected one depth map a file, got a batch of {len(view)}. Write view[0], view[1] ... one by "
            "one."
        )
    return view.require_valid()


def camera_to_text(view: View) -> dict[str, str]:
    """The intrinsics of a View of batch 1 as JSON under their name; empty without a camera."""
    return {} if view.intrinsics is None else {CAMERA: json.dumps(view.intrinsics[0].tolist())}


def camera_from_text(found: Mapping[str, Any], path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """What :func:`camera_to_text` wrote, or a JSON file's list, as ``intrinsics`` (1, 3, 3) for
    :func:`to_view`; {} if there is none.
    """
    value = found.get(CAMERA)
    if value is None:
        return {}
    try:
        matrix = torch.tensor(json.loads(value) if isinstance(value, str) else value, dtype=torch.float32)
        return {CAMERA: matrix.reshape(1, 3, 3)}
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"Expected a camera of 3 x 3 numbers in {show_path(path)}, got another. Remove its entry "
            f"{CAMERA!r}, or write the file anew."
        ) from error


def read_number(value: Any, name: str, source: str, *, above_zero: bool = False, text: bool = False) -> float:
    """A finite number that a file states under ``name``; in a ``text`` it may be written as text."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, *((str,) if text else ()))):
            raise ValueError
        number = float(value)
        if not math.isfinite(number) or (above_zero and number <= 0):
            raise ValueError
    except (ValueError, OverflowError) as error:
        expected = "a finite number above 0" if above_zero else "a finite number"
        raise ValueError(
            f"Expected {expected} as {name!r} in {source}, got {_shorten(value)}. Correct or remove it."
        ) from error
    return number


def choose_units(stated: Any, given: Units | None, source: str) -> Units | None:
    """The caller's unit, else the file's, from any known synonym; None if neither states one.

    Another unit, as millimeters, is refused unless the caller reads the depth as relative, which is correct
    for it.
    """
    if stated is None:
        return given
    found = name_units(stated, source)
    if found not in _UNITS and given != "relative":
        raise ValueError(
            _wrong_units(
                stated, source, "Convert the depth to meters and correct the entry, or read it as relative."
            )
        )
    return given or found


def name_units(stated: Any, source: str) -> str:
    """A file's name of its unit: ours if it is a synonym, else unchanged."""
    if not isinstance(stated, str):
        raise ValueError(_wrong_units(stated, source, "Correct or remove the entry."))
    word = stated.strip().lower()
    return _UNITS.get(word, word)


def _wrong_units(stated: Any, source: str, remedy: str) -> str:
    return f"Expected units 'metric' (meters) or 'relative' in {source}, got {_shorten(stated)}. {remedy}"


def check_direction(stated: Any, source: str) -> None:
    """Refuse a file that states another direction than larger = farther."""
    if stated is not None and (
        not isinstance(stated, str) or "".join(stated.lower().split()) != "larger=farther"
    ):
        raise ValueError(
            f"Expected the direction 'larger = farther' in {source}, got {_shorten(stated)}. "
            "Store depth, not disparity or an inverted image, and correct the entry."
        )


def to_view(depth, *, units: Any, path: str | os.PathLike, **others) -> View:
    """A reader's result as a View; ``units`` None means that neither file nor caller states them.

    Errors name the file.
    """
    source = show_path(path)
    units = choose_units(units, None, source)
    if units is None:
        raise UnstatedError(
            f"Expected units for {source}, which does not state them, got none. Pass units='metric' "
            "(metres) or units='relative'."
        )
    try:
        return View.from_depth(depth, units=units, **others)
    except ValueError as error:
        raise ValueError(f"Cannot read {source}: {error}") from error


def _shorten(value: Any) -> str:
    """A value for a message."""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
