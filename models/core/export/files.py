"""Whole files or none: bytes go to a file beside the target and take its name at the end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..geometry.view import View

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another disk",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another disk",
    errno.EFBIG: "the file would be larger than this system allows; choose another disk or a smaller picture",
    errno.EACCES: "the folder may not be written to; choose another one or change its permissions",
    errno.EPERM: "the folder may not be written to; choose another one or change its permissions",
    errno.EROFS: "the disk is read-only; choose another one",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.EEXIST: "a part of this path is a file, not a folder; choose another folder",
    errno.EISDIR: "a folder has this name; choose another name",
    errno.ENAMETOOLONG: "the name is too long for this disk; choose a shorter one",
}

_LONGEST_NAME = 250  # characters; disks take 255, and a partial file's name is five longer

CAMERA = "intrinsics"  # pixels of the depth map, row by row


class ExportError(OSError):
    """A file could not be written; the message is one sentence for the user, ``errno`` the system's number."""

    def __str__(self) -> str:
        return self.strerror


class UnstatedError(ValueError):
    """A file does not say what its numbers are, nor did the caller."""


def write_file(path: str | os.PathLike, data: bytes) -> Path:
    """Write ``data`` whole to ``path``, making its folders; on failure raise ExportError and leave an older file as it was."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        number = _find_cause(error, path)
        reason = _REASONS.get(number, error.strerror or str(error))
        raise ExportError(number, f"Cannot write {path}: {reason}.") from error
    return path


def _find_cause(error: OSError, path: Path) -> int | None:
    """The system's number of what went wrong; Windows calls a folder in the way "access denied" and a long name "not found"."""
    if os.path.isdir(path):
        return errno.EISDIR
    return errno.ENAMETOOLONG if len(path.name) > _LONGEST_NAME else error.errno


def one_picture(view: View) -> View:
    """Return a View of batch 1 with something to write in it, or say how to get one."""
    if len(view) != 1:
        raise ValueError(f"A batch of {len(view)} depth maps arrived for a file that holds one; write view[0], view[1] ... one by one.")
    return view.require_valid()


def camera_to_text(view: View) -> dict[str, str]:
    """The intrinsics of a View of batch 1 as JSON under their name, or nothing if it has none."""
    return {} if view.intrinsics is None else {CAMERA: json.dumps(view.intrinsics[0].tolist())}


def camera_from_text(found: Mapping[str, Any], path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """What :func:`camera_to_text` wrote, or a JSON file's list, as ``intrinsics`` ``1 3 3`` for :func:`to_view`; {} if there is none."""
    value = found.get(CAMERA)
    if value is None:
        return {}
    try:
        matrix = torch.tensor(json.loads(value) if isinstance(value, str) else value, dtype=torch.float32)
        return {CAMERA: matrix.reshape(1, 3, 3)}
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds a camera that is no 3 x 3 of numbers; remove its entry {CAMERA!r}, or write the file anew."
        ) from error


def to_view(depth, *, units: str | None, path: str | os.PathLike, **others) -> View:
    """What a reader found as a View; ``units`` None means that neither file nor caller named them."""
    if units is None:
        raise UnstatedError(f"{path} does not say what its numbers are: pass units='metric' (metres) or units='relative'.")
    return View.from_depth(torch.as_tensor(depth), units=units, **others)
