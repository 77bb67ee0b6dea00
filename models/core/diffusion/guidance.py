"""Classifier-free guidance over one or several streams."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def guide(prompted: Tensor, unprompted: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional), on a network's raw output."""
    return unprompted + scale * (prompted - unprompted)


def guide_streams(
    prompted: Sequence[Tensor], unprompted: Sequence[Tensor], scales: Sequence[float]
) -> tuple[Tensor, ...]:
    """`guide` with a scale for each output of a network; an output of scale 1 is the prompted one itself."""
    streams = zip(prompted, unprompted, scales, strict=True)
    return tuple(p if scale == 1 else guide(p, u, scale) for p, u, scale in streams)
