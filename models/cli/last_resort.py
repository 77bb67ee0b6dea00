"""The console door's net: whatever a command raises ends in one sentence and an exit code, and whatever it says can be written.

A refusal (ValueError, OSError and their like) is a sentence of the code that found the fault. Anything else is a fault that nobody
foresaw: its sentence names the command, the file that was being read where that is known, and how to see the trace for a report.
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
UNFORESEEN = 70  # sysexits.h: an internal software error
INTERRUPTED = 130  # the shell's number for Ctrl-C
PIPE_CLOSED = 141  # and for a reader that left, as `| head` does
DEBUG = "SPATIALWEAVE_DEBUG"  # in the environment, and not empty: every trace is shown
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
    """The exit code of what `run` does; `name` says which command that is, when it is known. One sentence goes to standard error."""
    steady_streams()
    try:
        return _run(name, run)
    finally:  # help goes this way too, by SystemExit
        _flush_or_leave()


def _run(name: Callable[[], str], run: Callable[[], object]) -> int:
    try:
        run()
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be said
    except KeyboardInterrupt:
        return _say(name(), "stopped; what was already written stays.", INTERRUPTED)
    except BrokenPipeError as error:
        if error.filename is not None:
            return _refuse(name(), error)
        return PIPE_CLOSED
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        return _unforeseen(name(), error) if isinstance(error, UnicodeError) else _refuse(name(), error)
    except Exception as error:  # noqa: BLE001 - the last resort: it ends the program, and says how to see the trace
        return _unforeseen(name(), error)
    return 0


def steady_streams() -> None:
    """Standard output and error that take any text: what an encoding lacks is written as an escape, what is closed is nowhere."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed before the program began
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))
        with contextlib.suppress(AttributeError, ValueError):  # another program's stream
            getattr(sys, stream).reconfigure(errors="backslashreplace")


def word(error: BaseException) -> str:
    """An error in one line, with a remedy where only the system speaks."""
    if isinstance(error, OSError) and error.strerror and str(error).startswith("[Errno"):
        unnamed = "standard output" if error.errno == errno.ENOSPC else "the system"
        place = unnamed if error.filename is None else _show(error.filename).removesuffix(".part")
        return f"{place}: {error.strerror}; {_REMEDIES.get(error.errno, 'choose a file or folder that can be used')}."
    return " ".join(str(error).split()) or type(error).__name__


def find_file(error: BaseException) -> Path | None:
    """The file that the innermost of our functions had in hand when this was raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed([frame for frame in frames if frame.f_globals.get("__name__", "").startswith(PACKAGE + ".")]):
        for value in frame.f_locals.values():
            with contextlib.suppress(OSError, ValueError):
                if isinstance(value, Path) and value.is_file():
                    return value
    return None


def _refuse(command: str, error: Exception) -> int:
    return _say(command, word(error), REFUSED, error)


def _unforeseen(command: str, error: Exception) -> int:
    found = find_file(error)
    place = f" while {_show(found)} was being read" if found else ""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
        return _say(command, f"the memory is full{place} ({word(error)}); ask for something smaller.", REFUSED, error)
    remedy = "check that it is what this command takes" if found else "check what was given to it"
    report = f"{DEBUG}=1 in the environment shows the trace, for a report"
    return _say(command, f"an unforeseen {type(error).__name__}{place} ({word(error)}); {remedy}. {report}.", UNFORESEEN, error)


def _say(command: str, sentence: str, code: int, error: BaseException | None = None) -> int:
    with contextlib.suppress(OSError, ValueError):  # nobody may be listening
        if error is not None and os.environ.get(DEBUG):
            sys.stderr.write("".join(traceback.format_exception(error)))
        sys.stderr.write(f"{command}: {sentence}\n")
        sys.stderr.flush()
    return code


def _flush_or_leave() -> None:
    """What cannot be written any more is dropped, or Python would complain of it at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(path: object) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace") if isinstance(path, str | bytes | os.PathLike) else str(path)
