"""The outermost error handler of the console: any exception becomes one sentence and an exit code.

Expected errors (ValueError, OSError and their like) carry the sentence of the code that found them. The
sentence of any other exception names the command, the file that was being read if it is known, and how to see
the traceback for a report. Standard output and error are made to accept any text.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

REFUSED = 1
UNFORESEEN = 70  # sysexits.h: internal software error
INTERRUPTED = 130  # the shell's code for Ctrl-C
PIPE_CLOSED = 141  # and for a closed pipe, as after `| head`
DEBUG = "SPATIALWEAVE_DEBUG"  # environment variable; if not empty, every traceback is shown
PACKAGE = __name__.partition(".models.")[0]

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EACCES: "choose a file or folder that may be used, or change its permissions",
    errno.EPERM: "choose a file or folder that may be used, or change its permissions",
    errno.EROFS: "choose a folder on a disk that may be written to",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "a part of this path is a file; choose another folder",
    errno.EEXIST: "choose another name",
    errno.EMFILE: "close other programs, or raise the limit with ulimit -n",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def run_command(name: Callable[[], str], run: Callable[[], object]) -> int:
    """Run a command and return its exit code; `name` returns the command's name, once known, for errors."""
    steady_streams()
    try:
        return _run(name, run)
    finally:  # also after --help, which raises SystemExit
        _flush_or_leave()


def _run(name: Callable[[], str], run: Callable[[], object]) -> int:
    try:
        run()
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
    except KeyboardInterrupt:
        return _say(name(), "stopped; what was already written stays.", INTERRUPTED)
    except BrokenPipeError as error:
        if error.filename is not None:
            return _refuse(name(), error)
        return PIPE_CLOSED
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        return _unforeseen(name(), error) if isinstance(error, UnicodeError) else _refuse(name(), error)
    except Exception as error:  # noqa: BLE001 - the last resort: it ends the program with a report
        return _unforeseen(name(), error)
    return 0


def steady_streams() -> None:
    """Let standard output and error accept any text: escapes, and devnull where closed."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed before the program began
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))
        with contextlib.suppress(AttributeError, ValueError):  # a stream that another program has replaced
            getattr(sys, stream).reconfigure(errors="backslashreplace")


def format_error(error: BaseException) -> str:
    """An error in one line, with a remedy for an error of the operating system."""
    if isinstance(error, OSError) and error.strerror and str(error).startswith("[Errno"):
        unnamed = "standard output" if error.errno == errno.ENOSPC else "the system"
        path = unnamed if error.filename is None else _show(error.filename).removesuffix(".part")
        remedy = _REMEDIES.get(error.errno, "choose a file or folder that can be used")
        return f"{path}: {error.strerror}; {remedy}."
    return " ".join(str(error).split()) or type(error).__name__


def find_input_file(error: BaseException) -> Path | None:
    """The file in the local variables of our innermost function on the traceback that has one, else None."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame.f_globals.get("__name__", "").startswith(PACKAGE + ".")]
    for frame in reversed(ours):
        for value in frame.f_locals.values():
            with contextlib.suppress(OSError, ValueError):
                if isinstance(value, Path) and value.is_file():
                    return value
    return None


def _refuse(command: str, error: Exception) -> int:
    return _say(command, format_error(error), REFUSED, error)


def _unforeseen(command: str, error: Exception) -> int:
    found = find_input_file(error)
    reading = f" while {_show(found)} was being read" if found else ""
    if _is_out_of_memory(error):
        sentence = f"the memory is full{reading} ({format_error(error)}); reduce the size or the batch."
        return _say(command, sentence, REFUSED, error)
    remedy = "check that the command takes such a file" if found else "check the arguments"
    report = f"{DEBUG}=1 in the environment shows the traceback, for a report"
    sentence = f"an unforeseen {type(error).__name__}{reading} ({format_error(error)}); {remedy}. {report}."
    return _say(command, sentence, UNFORESEEN, error)


def _is_out_of_memory(error: Exception) -> bool:
    named = type(error).__name__ == "OutOfMemoryError"
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _say(command: str, sentence: str, code: int, error: BaseException | None = None) -> int:
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed
        if error is not None and os.environ.get(DEBUG):
            sys.stderr.write("".join(traceback.format_exception(error)))
        sys.stderr.write(f"{command}: {sentence}\n")
        sys.stderr.flush()
    return code


def _flush_or_leave() -> None:
    """Flush standard output; if that fails, drop the rest, or Python would report it at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(path: object) -> str:
    if isinstance(path, str | bytes | os.PathLike):
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    return str(path)
