"""Cross-domain self-attention, equations 1 and 4 of the paper, from q, k, v of one layer of any host.

Image queries attend to image keys with weight 1 and to intrinsic keys with weight w, added to the logits as
log w; intrinsic queries attend to both with weight 1. Where w is 0 in every layer of a step, the host may run
the image rows alone, in calls of exactly the base model's shape (so the output equals the base model's bit
for bit), and then the intrinsic rows with the image's keys and values from a KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .rows import Rows

Plain = Callable[[Tensor, Tensor, Tensor], Tensor]  # the host's own attention
# the host's attention inside a coupled call: (q, k, v, *, scale[, bias]), tensors (b, h, n, d), see Inner
Inside = Callable[..., Tensor]


@dataclass
class KVCache:
    """Keys and values (b, n, h * d) of image rows by chunk and layer.

    The image's call stores them, the call of its maps reads them.
    """

    values: dict[tuple[Hashable, Hashable], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def put(self, layer: Hashable, rows: Rows, k: Tensor, v: Tensor) -> None:
        for chunk, key, value in zip(
            rows.chunks, rows.select(k, "image"), rows.select(v, "image"), strict=True
        ):
            self.values[chunk, layer] = key, value

    def take(self, layer: Hashable, rows: Rows) -> tuple[Tensor, Tensor]:
        """Keys and values of these chunks, whichever calls stored them; each is returned once and removed."""
        pairs = [self.values.pop((chunk, layer)) for chunk in rows.chunks]
        keys, values = zip(*pairs, strict=True)
        return torch.cat(keys), torch.cat(values)


@dataclass(frozen=True)
class Call:
    """The layers' inputs for one call of the network."""

    rows: Rows
    weights: Mapping[Hashable, float] | None = None  # w by layer; None is 1 in every layer, as in training
    cache: KVCache | None = None  # KV cache, filled by an image's call and read by its maps' call


class Coupling:
    """State shared by the coupled layers of one network: the current call.

    Wrap each call of the network: `with coupling.call(Rows(("prompt", "empty"), batch=2), weights):`.
    """

    def __init__(self) -> None:
        self._call: Call | None = None

    @property
    def is_active(self) -> bool:
        return self._call is not None

    @property
    def current(self) -> Call:
        """The current call of the network; RuntimeError outside a `with` block."""
        if self._call is None:
            raise RuntimeError(
                "Expected a call of the coupled network inside `with coupling.call(rows, weights):`, got one "
                "outside. Put it inside."
            )
        return self._call

    @property
    def rows(self) -> Rows:
        return self.current.rows

    @contextmanager
    def call(
        self, rows: Rows, weights: Mapping[Hashable, float] | None = None, cache: KVCache | None = None
    ) -> Iterator[Call]:
        """Calls of the network inside the block have these rows, with w by layer."""
        with self.resume(Call(rows, weights, cache)) as call:
            yield call

    @contextmanager
    def resume(self, call: Call) -> Iterator[Call]:
        """Enter a call again, for recomputation after its block."""
        before, self._call = self._call, call
        try:
            yield call
        finally:
            self._call = before

    def checkpoint(self, block: Callable[..., Any], *args: Any) -> Any:
        """Gradient checkpointing of one block, for diffusers' `enable_gradient_checkpointing`.

        The backward pass recomputes the block after the `with` block of its call, so the call is entered
        again.
        """
        call = self.current

        def run(*args: Any) -> Any:
            with self.resume(call):
                return block(*args)

        return checkpoint(run, *args, use_reentrant=False)

    def attend(
        self,
        layer: Hashable,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        heads: int,
        plain: Plain,
        inner: Inside | None = None,
    ) -> Tensor:
        """Attention of one layer after its projections: q, k, v (rows, n, h * d) to (rows, n, h * d).

        `plain` is the host's own attention, for calls of one stream; `inner`, if given, is the same for
        coupled calls.
        """
        call = self.current
        rows = call.rows
        rows.check(q.shape[0])
        if rows.streams == ("image",):
            if call.cache is not None:
                call.cache.put(layer, rows, k, v)
            return plain(q, k, v)
        if rows.streams == ("intrinsic",) and call.cache is None:
            # maps without an image: the paper's ablation of training without the image domain
            return plain(q, k, v)
        if rows.streams == ("intrinsic",):
            image_k, image_v = call.cache.take(layer, rows)
            return plain(q, torch.cat([image_k, k], dim=1), torch.cat([image_v, v], dim=1))
        weight = 1.0 if call.weights is None else call.weights[layer]
        return attend_domains(q, k, v, rows, weight, heads=heads, inner=inner)


def attend_domains(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, weight: float, *, heads: int, inner: Inside | None = None
) -> Tensor:
    """Equation 4 for a batch with both streams: q, k, v (rows, n, h * d); `weight` is w(l, t)."""
    # imported here: registering the op takes a quarter of the pack's import time
    from ...kernels.segment_attention import Inner, cross_domain_attention

    inner = Inner(inner, takes_bias=True) if inner else None
    if torch.compiler.is_compiling():  # numbers in Python would be constants of the graph, one per w
        weights, partners = full_weights(rows, weight), rows.partners()
    else:
        weights, partners = row_weights(len(rows.chunks), rows.batch, weight)
    return cross_domain_attention(q, k, v, weights, partner=partners, heads=heads, inner=inner)


def full_weights(rows: Rows, weight: float) -> Tensor:
    """Per row of a batch with both streams the weight of its partner (rows,), float32."""
    weights = torch.ones(rows.count)
    rows.select(weights, "image").fill_(weight)
    return weights


@lru_cache(maxsize=4096)
def row_weights(chunks: int, batch: int, weight: float) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """`full_weights` and the partner rows as numbers, for any batch of these sizes."""
    rows = Rows(tuple(range(chunks)), batch)
    return tuple(full_weights(rows, weight).tolist()), tuple(rows.partners())
