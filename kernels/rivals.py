"""What one would write instead of the attention op: for the benchmark, which checks their numbers before it times them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .segment_attention.composition import attend_with_lse
from .segment_attention.segments import Segments

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def beside(tensor: Tensor, segments: Segments) -> Tensor:
    """Copies of the sources side by side, (rows, heads, keys of all sources, width)."""
    sources = [(list(rows), slice(s.start, s.start + s.length)) for rows, s in zip(segments.rows(tensor.shape[0]), segments.sources)]
    own = list(range(tensor.shape[0]))
    return torch.cat([(tensor if rows == own else gathered(tensor, rows))[:, :, at] for rows, at in sources], 2)


def gathered(tensor: Tensor, rows: list[int]) -> Tensor:
    """Row by row: an index on the host would have to be copied to the device, which a CUDA graph cannot hold."""
    return torch.stack([tensor[row] for row in rows])


def two_calls(segments: Segments, log_weight: list, place: torch.device) -> Call:
    """What one writes first: attention to the own row, attention to the gathered partner, and a merge."""
    rows = torch.tensor(segments.sources[1].rows, device=place)
    shift = torch.tensor(log_weight, device=place)[:, :, 1, None]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own, own_lse = attend_with_lse(q, k, v, scale=q.shape[3] ** -0.5)
        other, other_lse = attend_with_lse(q, k[rows], v[rows], scale=q.shape[3] ** -0.5)
        share = torch.sigmoid(other_lse + shift - own_lse)[..., None].to(q.dtype)
        return own + (other - own) * share

    return call


def flex(segments: Segments, log_weight: list, place: torch.device, *, tuning: str | None = None) -> Call:
    """FlexAttention, compiled, over copied keys with a score modification. tuning: a mode of torch.compile."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, mode=tuning, dynamic=False)
    table = torch.tensor(log_weight, device=place)
    segment, slot = (
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(place)
        for lengths in (segments.queries, [source.length for source in segments.sources])
    )
    wide = table if table.dim() == 3 else table[None]

    def modified(score: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        return score + wide[b if wide.shape[0] > 1 else 0, segment[m], slot[n]]

    return lambda q, k, v: compiled(q, beside(k, segments), beside(v, segments), score_mod=modified)
