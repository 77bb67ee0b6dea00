"""Core's attention over many tokens, in chunks of queries, with a check for Cancel between them.

Core checks for Cancel at every layer, but one attention over the tokens of a 4096 x 4096 image can take
minutes on a CPU. A query's row does not depend on the others.
"""

from __future__ import annotations

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

PAIRS = 2**27  # queries times keys in one call: a second or two on a CPU for the tiny model


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor, transformer_options: dict) -> Tensor:
    """q, k, v (b, h, n, d) -> (b, n, h d)."""
    rows = max(1, PAIRS // k.shape[2])
    if q.shape[2] <= rows:
        return _attend(q, k, v, transformer_options)
    parts = []
    for part in q.split(rows, dim=2):
        if not torch.compiler.is_compiling():
            comfy.model_management.throw_exception_if_processing_interrupted()
        parts.append(_attend(part, k, v, transformer_options))
    return torch.cat(parts, dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, transformer_options: dict) -> Tensor:
    return optimized_attention(
        q, k, v, q.shape[1], skip_reshape=True, transformer_options=transformer_options
    )
