"""Shared by numerical tests: tolerances per dtype, a comparison that says where it fails, poisoned memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# values before and after a guarded buffer, which keep its alignment; a number exact in every dtype
BAND, MARK = 4096, -3072.0

# (relative, absolute), for values of order one after a few hundred operations.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-7, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (2e-3, 2e-3),
}


def assert_close(
    actual: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None, atol: float | None = None
) -> None:
    """Compare in float64 with the tolerance of `dtype` (default: the coarser of the two) or with `atol`
    alone.

    Shapes must be equal. NaN equals nothing, so a value of a poisoned buffer that was never written fails.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    rtol, absolute = TOLERANCES[dtype] if dtype else max(tolerance_of(actual), tolerance_of(expected))
    if atol is not None:
        rtol, absolute = 0.0, atol
    got, truth = actual.detach().double().cpu(), expected.detach().double().cpu()
    good = (got - truth).abs() <= absolute + rtol * truth.abs()
    if bool(good.all()):
        return
    where = tuple(int(i) for i in (~good).nonzero()[0])
    raise AssertionError(
        f"{int((~good).sum())} of {good.numel()} values differ by more than "
        f"atol {absolute:g} + rtol {rtol:g}; "
        f"first at {where}: {float(got[where]):.8g}, expected {float(truth[where]):.8g}; "
        f"largest error {float((got - truth).abs().max()):.3g}"
    )


def tolerance_of(tensor: Tensor) -> tuple[float, float]:
    """The table's entry for a tensor's dtype; integers and booleans compare exactly."""
    return TOLERANCES[tensor.dtype] if tensor.is_floating_point() else (0.0, 0.0)


def nan_filled(*shape: int, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Tensor:
    """A buffer full of NaN, so that reads before a write show in the result."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, every fresh floating-point buffer of torch is full of NaN."""
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill


class GuardedMemory(TorchFunctionMode):
    """Inside, float buffers of torch.empty and empty_like are full of NaN, between bands of marker values."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Tensor] = []

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        if func not in (torch.empty, torch.empty_like) or not made.is_floating_point() or made.numel() == 0:
            return made
        if 1 + sum((size - 1) * step for size, step in zip(made.shape, made.stride())) != made.numel():
            raise ValueError(
                f"Expected a dense buffer, got shape {tuple(made.shape)} and strides {made.stride()}."
            )
        whole = torch.full((made.numel() + 2 * BAND,), MARK, dtype=made.dtype, device=made.device)
        whole[BAND:-BAND] = float("nan")
        self.buffers.append(whole)
        return whole.as_strided(made.shape, made.stride(), BAND)

    def is_intact(self) -> bool:
        """Whether there were buffers, and nothing was written outside them."""
        return bool(self.buffers) and all(
            bool((band == MARK).all()) for whole in self.buffers for band in (whole[:BAND], whole[-BAND:])
        )
