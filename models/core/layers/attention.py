"""Softmax attention as one callable, so that a host can replace it by its own kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Full self-attention: q, k, v (b, h, n, d) -> (b, n, h d). `mask`: scaled_dot_product_attention's."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b h n d -> b n (h d)")


def attend_by_queries(attend: Attend, queries: int) -> Attend:
    """The same attention on `queries` rows of q at a time: less memory where the scores are written out."""

    def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([attend(part, k, v) for part in q.split(queries, dim=2)], dim=1)

    return chunked


def attend_with_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same attention with the scores (b, h, n, n) written out.

    For training on a CPU, where the fused kernel's backward pass is several times slower on short sequences.
    """
    scores = (q * q.shape[-1] ** -0.5) @ rearrange(k, "b h n d -> b h d n")
    return rearrange(scores.softmax(dim=-1).to(v.dtype) @ v, "b h n d -> b n (h d)")
