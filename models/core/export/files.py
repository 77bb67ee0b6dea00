"""Whole files or none: bytes go to a file beside the target and take its name at the end."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

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


class ExportError(OSError):
    """A file could not be written; the message is one sentence for the user, ``errno`` the system's number."""

    def __str__(self) -> str:
        return self.strerror


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
        reason = _REASONS.get(error.errno, error.strerror or str(error))
        raise ExportError(error.errno, f"Cannot write {path}: {reason}.") from error
    return path


def one_picture(view: View) -> View:
    """Return a View of batch 1 with something to write in it, or say how to get one."""
    if len(view) != 1:
        raise ValueError(f"A batch of {len(view)} depth maps arrived for a file that holds one; write view[0], view[1] ... one by one.")
    return view.require_valid()


def to_view(depth, *, units: str | None, path: str | os.PathLike, **others) -> View:
    """What a reader found as a View; ``units`` None means that neither file nor caller named them."""
    if units is None:
        raise ValueError(f"{path} does not say what its numbers are: pass units='metric' (metres) or units='relative'.")
    return View.from_depth(torch.as_tensor(depth), units=units, **others)
