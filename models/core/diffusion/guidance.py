"""Classifier-free guidance over one or several streams."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def guide(prompted: Tensor, unprompted: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional), on a network's raw output."""
    return unprompted + scale * (prompted - unprompted)


def guide_streams(
    prompted: Sequence[Tensor], unprompted: Sequence[Tensor], scale: float
) -> tuple[Tensor, ...]:
    """`guide` with one scale for every output of a network."""
    return tuple(guide(p, u, scale) for p, u in zip(prompted, unprompted, strict=True))
