"""Test cases for every backend: shapes, segments and weights, with readable names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .segments import Segments, Source

NEVER = -math.inf


@dataclass(frozen=True)
class Case:
    """Shapes and weights of random tensors. `rows` is B; `key_rows` (R) and `keys` (M) default to those of q.

    `loud` scales queries and keys; in the rows of `flat` all keys equal the first one.
    """

    name: str
    segments: Segments
    weights: tuple  # nested: (S, T), (B, S, T) or (B, H, S, T)
    rows: int = 2
    heads: int = 3
    width: int = 40
    key_rows: int | None = None
    keys: int | None = None
    layout: str = "BHND"
    loud: float = 1.0
    flat: tuple[int, ...] = ()

    def tensors(
        self,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as (B, H, N, D).

        Layout "packed": stored as (B, N, 3, H, D), a fused qkv projection; "BNHD": stored as (B, N, H * D),
        as in ComfyUI.
        """
        q, k, v = self._random(generator, dtype, device)
        for row in self.flat:
            k[row] = k[row, :, :1].clone()
        return q.mul_(self.loud), k.mul_(self.loud), v

    def _random(
        self, generator: torch.Generator, dtype: torch.dtype, device: str | torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        def made(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        queries = sum(self.segments.queries)
        key_rows, keys = self.key_rows or self.rows, self.keys or queries
        if self.layout == "packed":
            qkv = made(self.rows, queries, 3, self.heads, self.width)
            return tuple(part.transpose(1, 2) for part in qkv.unbind(2))  # type: ignore[return-value]
        shapes = ((self.rows, queries), (key_rows, keys), (key_rows, keys))
        if self.layout == "BNHD":
            q, k, v = (made(b, n, self.heads, self.width).transpose(1, 2) for b, n in shapes)
        else:
            q, k, v = (made(b, self.heads, n, self.width) for b, n in shapes)
        return q, k, v

    def log_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(self.weights, dtype=dtype)


def _log(weight: float) -> float:
    return math.log(weight) if weight else NEVER


def coupled(
    name: str, length: int, partner: Callable[[int], int], weights: tuple[float, ...], **more
) -> Case:
    """I-LDM: row b attends to itself at weight 1 and to its partner at weights[b]."""
    rows = len(weights)
    segments = Segments.coupled(length, tuple(partner(row) for row in range(rows)))
    return Case(name, segments, tuple(((0.0, _log(w)),) for w in weights), rows=rows, **more)


def _pair(row: int) -> int:
    return row ^ 1


THREE = ((0.0, 0.0, NEVER), (_log(0.3), 0.0, _log(2.0)), (NEVER, _log(1e-6), 0.0))
BY_HEAD = tuple(tuple(((0.0, _log((b + 1) * (h + 1) / 7)),) for h in range(3)) for b in range(2))
CASES = (
    coupled("pairs-mixed", 50, _pair, (0.4, 1.0, 0.0, 1e-6)),
    coupled("pairs-zero", 33, _pair, (0.0, 0.0), width=64),
    coupled("pairs-one-packed", 65, _pair, (1.0,) * 4, width=16, layout="packed"),
    coupled("pairs-ildm-bnhd", 64, _pair, (0.25, 1.0) * 2, width=24, layout="BNHD"),
    coupled("halves-mixed", 31, lambda row: (row + 2) % 4, (0.5, 0.5, 2.0, 1.0), width=72, heads=1),
    coupled("partner-not-mutual", 17, lambda row: 0, (0.3, 0.0, 0.7), width=80, layout="packed"),
    coupled("one-token", 1, _pair, (0.5, 1.0), width=40),
    coupled("one-short-of-a-tile", 63, _pair, (0.6, 1.0), width=72, heads=1, layout="BNHD"),
    coupled("one-short-of-two-tiles", 127, _pair, (0.0, 0.7), width=80, heads=1, layout="packed"),
    Case("joint-three-streams", Segments.joint((7, 40, 33)), THREE, width=64, layout="packed"),
    Case("joint-all-one", Segments.joint((16, 64, 20)), ((0.0,) * 3,) * 3, width=32, layout="BNHD"),
    Case("by-head", Segments.coupled(45, (1, 0)), BY_HEAD, width=48),
    Case(
        "more-keys",
        Segments((20,), (Source(0, 37), Source(30, 33))),
        ((0.0, 0.5),),
        keys=70,
        width=128,
        heads=2,
    ),
    Case("sees-nothing", Segments((9, 8), (Source(0, 17),)), ((NEVER,), (0.3,)), width=16),
    Case(
        "other-rows",
        Segments((15,), (Source(2, 11, (2, 0)), Source(0, 30, (1, 1)))),
        ((0.2, -1.0),),
        key_rows=3,
        keys=30,
        width=160,
    ),
)
EXTREME = (  # exact numbers are harder here: errors grow with the logits, and gradients cancel
    coupled("large-logits", 40, _pair, (0.4, 1.0, 0.0, 1e-6), width=16, loud=5.0),  # up to 80 and more
    coupled("equal-keys", 33, _pair, (0.3, 1.0), width=24, layout="BNHD", flat=(0, 1)),
    coupled("one-row-of-equal-keys", 33, _pair, (0.3, 1.0), width=24, layout="packed", flat=(1,)),
)
LONG = (
    coupled("long-1000", 1000, _pair, (0.4, 1.0), width=16, heads=1),
    coupled("long-1023", 1023, _pair, (0.3, 0.0), width=40, heads=1, layout="packed"),
    Case("long-4097", Segments.joint((1000, 3097)), ((0.0, -0.5), (0.3, 0.0)), width=16, rows=1, heads=1),
)
