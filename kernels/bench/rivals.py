"""Baselines: what one would write instead of the attention op.

Their outputs are checked before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..dispatch import use_backend
from ..segment_attention import segment_attention
from ..segment_attention.log_sum_exp import (
    attend_by_cudnn,
    attend_by_efficient,
    attend_by_flash,
    attend_with_lse,
)
from ..segment_attention.reference import bias_row
from ..segment_attention.segments import Segments, full_weight

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
TWO_CALLS, MASKED, ONE_STREAM, FLEX = (
    "two calls, gather, merge",
    "concat and mask",
    "one stream",
    "flex attention",
)


def rivals(segments: Segments, log_weight: list, place: torch.device, mode: str = "eager") -> dict[str, Call]:
    """Ours and every baseline but FlexAttention.

    In mode "graph" our weights are on the device: a graph reads no host memory.
    """
    ours_weight = torch.tensor(log_weight, device=place) if mode == "graph" else log_weight
    cuda, mask = place.type == "cuda", masked(segments, log_weight)
    found: dict[str, Call] = {
        "ours": ours(segments, ours_weight),
        MASKED: mask,
        ONE_STREAM: F.scaled_dot_product_attention,
        TWO_CALLS: two_calls(segments, log_weight, place, attend_with_lse),
    }
    if cuda:
        forced = (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)  # flash takes no mask
        found |= {f"{MASKED}, {backend.name.lower()}": by(backend, mask) for backend in forced}
        found |= {f"ours, {name}": ours(segments, ours_weight, name) for name in ("triton", "composition")}
        attend = {"cudnn": attend_by_cudnn, "flash": attend_by_flash, "efficient": attend_by_efficient}
        found |= {
            f"{TWO_CALLS}, {name}": two_calls(segments, log_weight, place, call)
            for name, call in attend.items()
        }
    return found


def ours(segments: Segments, log_weight: list | Tensor, backend: str | None = None) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return segment_attention(q, k, v, segments, log_weight)

    def forced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with use_backend(backend):
            return call(q, k, v)

    return call if backend is None else forced


def masked(segments: Segments, log_weight: list) -> Call:
    """Concatenated keys and values, with the weights as an attention mask in q's dtype, built once."""
    bias: dict[torch.dtype, Tensor] = {}

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype not in bias:
            bias[q.dtype] = bias_row(q, segments, full_weight(log_weight, q, segments)).to(q.dtype)
        return F.scaled_dot_product_attention(
            q, beside(k, segments), beside(v, segments), attn_mask=bias[q.dtype]
        )

    return call


def by(backend: SDPBackend, call: Call) -> Call:
    def forced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return call(q, k, v)

    return forced


def beside(tensor: Tensor, segments: Segments) -> Tensor:
    """The sources concatenated along the keys, (b, h, n, d)."""
    sources = [
        (list(rows), slice(s.start, s.start + s.length))
        for rows, s in zip(segments.rows(tensor.shape[0]), segments.sources)
    ]
    own = list(range(tensor.shape[0]))
    return torch.cat(
        [(tensor if rows == own else gathered(tensor, rows))[:, :, at] for rows, at in sources], 2
    )


def gathered(tensor: Tensor, rows: list[int]) -> Tensor:
    """Gather row by row: a CUDA graph cannot capture the upload of an index tensor."""
    return torch.stack([tensor[row] for row in rows])


def two_calls(segments: Segments, log_weight: list, place: torch.device, attend: Callable) -> Call:
    """Attention to the own row and to the gathered partner row, merged by their log-sum-exp."""
    rows = torch.tensor(segments.sources[1].rows, device=place)
    shift = torch.tensor(log_weight, device=place)[:, :, 1, None]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own, own_lse = attend(q, k, v, scale=q.shape[3] ** -0.5)
        other, other_lse = attend(q, k[rows], v[rows], scale=q.shape[3] ** -0.5)
        share = torch.sigmoid(other_lse + shift - own_lse)[..., None].to(q.dtype)
        return own + (other - own) * share

    return call


def flex(segments: Segments, table: Tensor, *, tuning: str | None = None) -> Call:
    """FlexAttention over concatenated keys, compiled once per shape.

    `table`: log weights (B, 1, T) on the device; may be overwritten between calls. `tuning`: the
    `mode` of torch.compile. With fullgraph=True a fallback to eager after several recompilations is an error.
    """
    modified = by_border(segments, table)

    @cache
    def compiled() -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import flex_attention

        return torch.compile(flex_attention, mode=tuning, dynamic=False, fullgraph=True)

    return lambda q, k, v: compiled()(q, beside(k, segments), beside(v, segments), score_mod=modified)


def by_border(segments: Segments, table: Tensor) -> Callable[..., Tensor]:
    """score_mod for one query segment: compares the key index with the borders, without a table lookup."""
    borders = [
        sum(source.length for source in segments.sources[:slot]) for slot in range(1, len(segments.sources))
    ]

    def modified(score: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        weight = table[b, 0, 0]
        for slot, border in enumerate(borders, 1):
            weight = torch.where(n >= border, table[b, 0, slot], weight)
        return score + weight

    return modified
