"""Gradients of segment attention in plain torch, recomputed from the saved log-sum-exp, block by block.

    p = exp(scores - lse)        dv = p^T do        ds = p (do v^T - delta)        delta = sum(do * o) - dlse
    dq = scale ds k              dk = scale ds^T q
    d log w(row, head, segment, source) = sum of ds over the segment and the source

A source of weight zero has p = 0, so every gradient through it, d log w included, is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .segments import Segments

MOST_SCORES = 1 << 24  # of one block


def segment_attention_backward(
    grads: tuple[Tensor, Tensor],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    outputs: tuple[Tensor, Tensor],
    segments: Segments,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(do, dlse), (q, k, v, log_weight), (o, lse) -> dq, dk, dv, d log_weight, shaped as the inputs.

    Half precision is computed in float32. The order of all sums is fixed.
    """
    q, k, v, log_weight = inputs
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    grad, out = grads[0].to(exact), outputs[0].to(exact)
    delta = (grad * out).sum(-1) - grads[1].to(exact)
    lse = outputs[1].to(exact)
    lse = lse.masked_fill(lse == -math.inf, math.inf)  # a query that sees no key has p = 0
    dq, dk, dv = (torch.zeros(tensor.shape, dtype=exact, device=q.device) for tensor in (q, k, v))
    weight = log_weight.to(q.device, exact).expand(q.shape[0], q.shape[1], -1, -1)
    dw = torch.zeros(weight.shape, dtype=exact, device=q.device)
    block = _Block(q, k, v, grad, delta, lse, weight, dq, dk, dv, dw, scale)
    for slot, (source, key_rows) in enumerate(zip(segments.sources, segments.rows(q.shape[0]))):
        keys = slice(source.start, source.start + source.length)
        for rows in distinct(key_rows):
            step = max(16, MOST_SCORES // (len(rows) * q.shape[1] * source.length))
            for segment, (start, stop) in enumerate(segments.query_ranges()):
                for first in range(start, stop, step):
                    block.add(
                        rows,
                        [key_rows[row] for row in rows],
                        slice(first, min(first + step, stop)),
                        keys,
                        segment,
                        slot,
                    )
    for axis in (0, 1):
        if log_weight.shape[axis] == 1:
            dw = dw.sum(axis, keepdim=True)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dw.to(log_weight.device, log_weight.dtype)


def distinct(key_rows: tuple[int, ...]) -> list[list[int]]:
    """Batches of query rows that read distinct key rows, so that index_add_ never adds to one row twice."""
    waves: list[list[int]] = []
    for row, key_row in enumerate(key_rows):
        for wave in waves:
            if all(key_rows[other] != key_row for other in wave):
                wave.append(row)
                break
        else:
            waves.append([row])
    return waves


class _Block:
    """The tensors, and `add`: the gradients' contribution of one block of queries and one source."""

    def __init__(self, *tensors) -> None:
        (
            self.q,
            self.k,
            self.v,
            self.grad,
            self.delta,
            self.lse,
            self.weight,
            self.dq,
            self.dk,
            self.dv,
            self.dw,
            self.scale,
        ) = tensors

    def add(
        self, rows: list[int], key_rows: list[int], queries: slice, keys: slice, segment: int, slot: int
    ) -> None:
        device, exact = self.q.device, self.dq.dtype
        of, at = torch.tensor(rows, device=device), torch.tensor(key_rows, device=device)
        q, k, v = (
            self.q[of, :, queries].to(exact),
            self.k[at, :, keys].to(exact),
            self.v[at, :, keys].to(exact),
        )
        grad = self.grad[of, :, queries]
        shift = self.weight[of, :, segment, slot][..., None] - self.lse[of, :, queries]
        p = (q @ k.transpose(2, 3) * self.scale + shift[..., None]).exp()
        ds = p * (grad @ v.transpose(2, 3) - self.delta[of, :, queries][..., None])
        self.dv[:, :, keys].index_add_(0, at, p.transpose(2, 3) @ grad)
        self.dk[:, :, keys].index_add_(0, at, ds.transpose(2, 3) @ q, alpha=self.scale)
        self.dq[:, :, queries].index_add_(0, of, ds @ k, alpha=self.scale)
        self.dw[:, :, segment, slot].index_add_(0, of, ds.sum((2, 3)))
