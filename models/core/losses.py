"""Shared parts of the systems' losses: the sum of named terms, and masked means."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def sum_terms(terms: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, which is the sum of its weighted terms, and each term detached, for the log."""
    return sum(terms.values()), {name: value.detach() for name, value in terms.items()}


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values where `mask` (bool, same shape) is True.

    0 with a gradient of 0 if it is False everywhere.
    """
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def masked_mean_each(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`masked_mean`, for each sample of (b, ...): means (b,), and the number of elements (b,) of
    each.
    """
    count = mask.flatten(1).sum(dim=1)
    return torch.where(mask, values, 0.0).flatten(1).sum(dim=1) / count.clamp(min=1), count
