"""Chooses the backend of an op: by declared limits, or forced by a context or an environment variable.

with use_backend("composition"): ...          SPATIALWEAVE_KERNELS=triton spatialweave bench kernels
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

VARIABLE = "SPATIALWEAVE_KERNELS"
BACKENDS = ("triton", "composition", "reference")  # in the order of preference
_forced: ContextVar[str | None] = ContextVar("spatialweave_kernels", default=None)
_log = logging.getLogger("spatialweave.kernels")


class BackendUnavailableError(RuntimeError):
    """A forced backend does not support the call; the message gives the reason."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside, every op runs on this backend or raises BackendUnavailableError."""
    token = _forced.set(_known(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> str | None:
    """The backend forced by the context, else by the environment; None if neither does."""
    given = _forced.get()
    if given is not None:
        return given
    variable = os.environ.get(VARIABLE, "")
    return _known(variable, VARIABLE) if variable and variable != "auto" else None


def _known(name: str, origin: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{origin}: expected one of {', '.join(BACKENDS)}, got {name!r}.")
    return name


@dataclass
class Trust:
    """State of a kernel on this machine, by variant: its self-check passed, or it failed, with the reason."""

    proven: set = field(default_factory=set)
    failed: dict = field(default_factory=dict)

    def reason(self, key: object) -> str | None:
        return self.failed.get(key)

    def refusal(self, key: object) -> str:
        """Why `launch` did not run the kernel."""
        failed = self.reason(key)
        return (
            f"it failed: {failed}"
            if failed
            else "its self-check cannot run while a CUDA graph is captured: call it once before"
        )

    def launch(
        self, key: object, check: Callable[[], str | None], run: Callable[[], object]
    ) -> tuple[bool, object]:
        """(True, result), or (False, None) after a failure, which is logged once and final for the variant.

        OutOfMemoryError and errors during CUDA graph capture are raised: they are no failures of the kernel.
        A variant whose self-check has not run yet does not launch during capture.
        """
        if key in self.failed or (key not in self.proven and is_capturing()):
            return False, None
        try:
            if key not in self.proven:
                wrong = check()
                if wrong:
                    raise ArithmeticError(wrong)
            result = run()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - compilers and drivers raise anything
            if is_capturing():
                raise
            self.failed[key] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            _log.warning(
                "a kernel is not used on this machine (%s): %s; torch's attention runs instead",
                key,
                self.failed[key],
            )
            return False, None
        self.proven.add(key)
        return True, result


def choose(reasons: dict[str, str | None]) -> str:
    """The forced backend, or an error; else the first one that `reasons` maps to None."""
    forced = forced_backend()
    if forced is None:
        return next(name for name in BACKENDS if reasons[name] is None)
    if reasons[forced] is not None:
        raise refused(forced, reasons[forced])
    return forced


def refused(forced: str, reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(f"The backend {forced!r} is forced, but {reason}; choose another or none.")


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured, in which the host can neither read nor upload values."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
