"""Cross-domain self-attention, equations 1 and 4 of the paper, for any host that has q, k, v of one layer in hand.

Image queries see image keys at weight 1 and intrinsic keys at weight w, which enters as log w beside the scores; intrinsic queries see
both at 1. Where w is 0 in every layer of a step the host may run the image rows alone, in calls of exactly the base model's shape (so
its numbers are the base model's, bit for bit), and the intrinsic rows after them: the image's keys and values are kept in between.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .rows import Rows

Plain = Callable[[Tensor, Tensor, Tensor], Tensor]  # a host's own attention
Inside = Callable[..., Tensor]  # the same inside a coupled call: (q, k, v, *, scale[, bias]) in 'b h n d', as our op's Inner says


@dataclass
class Kept:
    """The image's keys and values between the image's call and its intrinsic maps' call, by chunk and layer."""

    values: dict[tuple[Hashable, Hashable], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def put(self, layer: Hashable, rows: Rows, k: Tensor, v: Tensor) -> None:
        for chunk, key, value in zip(rows.chunks, rows.select(k, "image"), rows.select(v, "image"), strict=True):
            self.values[chunk, layer] = key, value

    def take(self, layer: Hashable, rows: Rows) -> tuple[Tensor, Tensor]:
        """What was put for these chunks, whatever calls they came in; each is given out once and then forgotten."""
        pairs = [self.values.pop((chunk, layer)) for chunk in rows.chunks]
        keys, values = zip(*pairs, strict=True)
        return torch.cat(keys), torch.cat(values)


@dataclass
class Coupling:
    """What one call of the network has to know: its rows, w of each layer, and what is kept from the call before."""

    rows: Rows | None = None
    weights: dict[Hashable, float] = field(default_factory=dict)
    kept: Kept | None = None

    def attend(self, layer: Hashable, q: Tensor, k: Tensor, v: Tensor, *, heads: int, plain: Plain, inner: Inside | None = None) -> Tensor:
        """q, k, v (rows, tokens, heads * width) of one layer, after the projections; the output has q's form.

        `plain` is the host's own attention and serves calls of one stream; `inner`, if given, is the same inside the coupled call.
        """
        rows = self.rows
        rows.check(q.shape[0])
        if rows.streams == ("image",):
            if self.kept is not None:
                self.kept.put(layer, rows, k, v)
            return plain(q, k, v)
        if rows.streams == ("intrinsic",) and self.kept is None:
            return plain(q, k, v)  # maps that know of no image: the paper's ablation of training without the image domain
        if rows.streams == ("intrinsic",):
            image_k, image_v = self.kept.take(layer, rows)
            return plain(q, torch.cat([image_k, k], dim=1), torch.cat([image_v, v], dim=1))
        return attend_domains(q, k, v, rows, self.weights[layer], heads=heads, inner=inner)


def attend_domains(q: Tensor, k: Tensor, v: Tensor, rows: Rows, weight: float, *, heads: int, inner: Inside | None = None) -> Tensor:
    """Equation 4 for a batch that holds both streams: q, k, v (rows, tokens, heads * width), `weight` w of this layer and step."""
    # late: registering the op takes a quarter of the time in which the whole pack loads
    from ...kernels.segment_attention import Inner, cross_domain_attention

    weights = torch.ones(rows.count)
    rows.select(weights, "image").fill_(weight)
    inner = Inner(inner, takes_bias=True) if inner else None
    return cross_domain_attention(q, k, v, weights, partner=rows.partners(), heads=heads, inner=inner)
