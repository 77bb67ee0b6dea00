"""Softmax attention as one callable, so that a host may put its own kernel in its place."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Full attention over all tokens: q, k, v 'b (h, n) d' -> 'b n (h d)'.

    `mask` as in scaled_dot_product_attention.
    """
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)
