"""Segment attention in plain torch: the definition that every backend is tested against.

    scores_{mn} = scale * q_m . k_n + log w(row, head, segment of m, source of n)
    o_m         = sum_n softmax_n(scores_m)_n v_n        over the keys of all sources, in one softmax
    lse_m       = log sum_n exp(scores_mn)

w = 1 for every source is attention over their concatenation; w = 0 (log w = -inf) masks a source; a key that
is in several sources counts once per source. A query that sees no key gets o = 0 and lse = -inf. The weights
are those of I-LDM's equation 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .segments import Segments


def segment_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, log_weight: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """q (B, H, N, D), k and v (R, H, M, D), log_weight (1 or B, 1 or H, S, T) -> o as q, lse (B, H, N).

    Half precision is computed in float32. Differentiable by autograd.
    """
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    sources = [
        (torch.tensor(rows, device=q.device), s)
        for rows, s in zip(segments.rows(q.shape[0]), segments.sources)
    ]
    keys = torch.cat([k[rows, :, s.start : s.start + s.length] for rows, s in sources], dim=2).to(exact)
    values = torch.cat([v[rows, :, s.start : s.start + s.length] for rows, s in sources], dim=2).to(exact)
    scores = q.to(exact) @ keys.transpose(2, 3) * scale + bias_row(q, segments, log_weight).to(exact)
    seen = (scores != -math.inf).any(dim=-1, keepdim=True)
    scores = scores.where(seen, torch.zeros_like(scores))
    lse = scores.logsumexp(dim=-1, keepdim=True)
    probabilities = (scores - lse).exp() * seen
    out = (probabilities @ values).to(q.dtype)
    return out, lse.masked_fill(~seen, -math.inf)[..., 0]


def bias_row(q: Tensor, segments: Segments, log_weight: Tensor) -> Tensor:
    """The weights as a bias on the scores, (1 or B, 1 or H, N, keys of all sources)."""
    weight = log_weight.to(q.device)
    by_key = weight.repeat_interleave(
        torch.tensor([source.length for source in segments.sources], device=q.device), dim=3
    )
    return by_key.repeat_interleave(torch.tensor(segments.queries, device=q.device), dim=2)
