"""Prepared calls: what the host works out for a call is kept, and found again by the layout of its tensors.

The key is everything but the numbers: shapes, strides, dtypes and devices of q, k and v, segments or partner,
head count, scale, and which weights are equal. Weights are bound per call, so one prepared call serves all
steps of a schedule. Only calls that ran once, through all checks, are kept. Calls that autograd or
torch.compile follow, and calls of a host's attention, are not prepared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import forced_backend, is_capturing

MOST_CALLS = 1024  # of a few kilobytes each
MOST_WEIGHTS = 8192  # a run of 50 steps on 70 layers has 3500
# (q, k, v, weights) -> (output, log-sum-exp or None), or None where this call must take the long way
Run = Callable[[Tensor, Tensor, Tensor, "Weights"], tuple[Tensor, Tensor | None] | None]
_calls: dict[Hashable, Run] = {}


class Weights:
    """Log weights (1 or B, 1 or H, S, T) of one call.

    `pattern`: their shape, and for each value the number of the first equal one; -1 for -inf, 0 for a log
    weight of 0. `bound`: what prepared calls derived from the values, by device or call.
    """

    def __init__(self, logs: Tensor, pattern: Hashable):
        self.logs, self.pattern = logs, pattern
        self.bound: dict[Hashable, object] = {}

    @property
    def is_known(self) -> bool:
        """Whether the values are on the CPU."""
        return self.logs.device.type == "cpu"

    def on(self, device: torch.device) -> Tensor:
        """The values on a device, copied there once."""
        if device.type == "cpu":
            return self.logs
        near = self.bound.get(device)
        if near is None:
            near = self.bound[device] = self.logs.to(device, non_blocking=True)
        return near  # type: ignore[return-value]


class Kept(NamedTuple):
    """What is kept under a key, with the weights of this call."""

    key: Hashable
    weights: Weights

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """The result of the prepared call; None if there is none yet, or if it does not serve this call."""
        prepared = _calls.get(self.key)
        return None if prepared is None else prepared(q, k, v, self.weights)

    def keep(self, run: Run | None) -> None:
        """Keep a prepared call; the oldest makes room."""
        if run is None or is_capturing():
            return
        if len(_calls) >= MOST_CALLS:
            _calls.pop(next(iter(_calls)), None)
        _calls[self.key] = run


def find_kept(
    q: Tensor, k: Tensor, v: Tensor, what: Hashable, weights: Weights | None, options: tuple
) -> Kept | None:
    """None for weights that are not prepared, and while a CUDA graph is captured with weights on the CPU."""
    if weights is None or (q.is_cuda and weights.is_known and is_capturing()):
        return None
    is_aligned = not (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15  # a limit of the kernel
    key = (
        what, weights.pattern, is_aligned, q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(),
        q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, options, forced_backend(),
    )  # fmt: skip
    return Kept(key, weights)


def forget_calls() -> None:
    """Drop every prepared call, for tests that change what the machine can do."""
    _calls.clear()


def is_plain(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether neither torch.compile nor autograd follows the call."""
    if torch.compiler.is_compiling() or not (type(q) is type(k) is type(v) is Tensor):
        return False
    return not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))


def coupled_weights(weight: object, dtype: torch.dtype) -> Weights | None:
    """The weights of `cross_domain_attention`; None for those that it must check or read itself."""
    frozen = freeze(weight)
    return None if frozen is None else _coupled(*frozen, torch.float64 if dtype == torch.float64 else None)


def segment_weights(log_weight: object, queries: int, sources: int, dtype: torch.dtype) -> Weights | None:
    """The log weights of `segment_attention`, likewise. On a device only float32 (B, H, S, T) as they lie."""
    if isinstance(log_weight, Tensor) and log_weight.device.type != "cpu":
        return _device_weights(log_weight, queries, sources)
    frozen = ((), (0.0,)) if log_weight is None else freeze(log_weight)
    exact = torch.float64 if dtype == torch.float64 else None
    return None if frozen is None else _segments(*frozen, queries, sources, exact)


def freeze(weight: object) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """Shape and values of a number, of nested sequences of numbers or of a tensor on the CPU."""
    if type(weight) is Tensor:
        if weight.device.type != "cpu" or weight.requires_grad or weight.numel() > 4096:
            return None
        return tuple(weight.shape), tuple(weight.flatten().tolist())
    if type(weight) in (int, float):
        return (), (weight,)  # type: ignore[return-value]
    if type(weight) not in (list, tuple) or not weight:
        return None
    if all(type(each) in (int, float) for each in weight):  # type: ignore[union-attr]
        return (len(weight),), tuple(weight)  # type: ignore[arg-type]
    entries = [freeze(each) for each in weight]  # type: ignore[union-attr]
    if None in entries or len({shape for shape, _ in entries}) != 1:  # type: ignore[misc]
        return None
    return (len(entries), *entries[0][0]), tuple(x for _, of in entries for x in of)  # type: ignore[index,misc]


@lru_cache(maxsize=MOST_WEIGHTS)
def _coupled(
    shape: tuple[int, ...], values: tuple[float, ...], exact: torch.dtype | None
) -> Weights | None:
    """Own row at log weight 0, partner row at log w."""
    if len(shape) > 2:
        return None
    weight = torch.tensor(values, dtype=exact or torch.float32)
    weight = weight.reshape(*shape, *(1,) * (2 - len(shape)))[:, :, None, None]
    return _known(torch.cat([torch.zeros_like(weight), weight.log()], dim=3))


@lru_cache(maxsize=MOST_WEIGHTS)
def _segments(
    shape: tuple[int, ...], values: tuple[float, ...], queries: int, sources: int, exact: torch.dtype | None
) -> Weights | None:
    weight = torch.tensor(values, dtype=exact or torch.float32).reshape(shape)
    if weight.dim() > 4:
        return None
    weight = weight[:, None] if weight.dim() == 3 else weight.reshape((1,) * (4 - weight.dim()) + shape)
    if any(got not in (1, size) for got, size in zip(weight.shape[2:], (queries, sources))):
        return None
    return _known(weight.expand(*weight.shape[:2], queries, sources).contiguous())


def _known(logs: Tensor) -> Weights | None:
    values = logs.flatten().tolist()
    if not all(value < math.inf for value in values):  # NaN or +inf, which the long way refuses
        return None
    number = {-math.inf: -1, 0.0: 0}
    return Weights(logs, (tuple(logs.shape), tuple(number.setdefault(x, len(number)) for x in values)))


def _device_weights(weight: Tensor, queries: int, sources: int) -> Weights | None:
    as_it_lies = weight.dtype == torch.float32 and weight.dim() == 4 and weight.is_contiguous()
    if not as_it_lies or weight.requires_grad or tuple(weight.shape[2:]) != (queries, sources):
        return None
    if weight.data_ptr() % 16:
        return None
    return Weights(weight, (tuple(weight.shape), weight.device))


def frozen_partner(partner: object) -> Hashable | None:
    """`partner` of `cross_domain_attention` as part of a key; None for a tensor, which has to be read."""
    if isinstance(partner, str) or type(partner) is tuple:
        return partner
    return tuple(partner) if isinstance(partner, Sequence) else None
