"""Geometry tokens in the sequence of a Flux editor: their ids, their weights, and their fusion in diffusers.

Tokens come after the editor's own image tokens (target, then references). Ids are (first_axis, row, column,
0 ..); the query grid is spread over the target's own rows and columns, so one connector serves any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

CLOSED = -1e4  # log weight of a token that one row of a batch leaves out; -inf can make a softmax NaN


def spread_ids(target_ids: Tensor, grid: tuple[int, int], first_axis: float) -> Tensor:
    """Ids (q, axes) of a query grid over a target's own ids (n, axes); whole numbers at the trained size."""
    height, width = grid
    ids = target_ids.new_zeros(height * width, target_ids.shape[-1])
    rows, columns = (_spread(target_ids[:, axis], side) for axis, side in ((1, height), (2, width)))
    ids[:, 0] = first_axis
    ids[:, 1] = repeat(rows, "h -> (h w)", w=width)
    ids[:, 2] = repeat(columns, "w -> (h w)", h=height)
    return ids


def _spread(values: Tensor, count: int) -> Tensor:
    """Centers of `count` equal cells over the extent of `values`, each of which is the center of a cell."""
    low, high = values.min() - 0.5, values.max() + 0.5
    cells = torch.arange(count, device=values.device, dtype=values.dtype)
    return low + (cells + 0.5) * (high - low) / count


def holds_first_axis(ids: Tensor, first_axis: float) -> bool:
    """Whether tokens with these ids (b, n, axes) already have that first id."""
    return bool((ids[..., 0] == first_axis).any())


def grid_weights(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """A mask (b, h, w) of the image -> weights (b, q) of the grid's tokens: its mean over each cell."""
    pooled = F.adaptive_avg_pool2d(mask[:, None].float(), grid)
    return rearrange(pooled.clamp(0, 1), "b 1 h w -> b (h w)")


def key_bias(weights: Tensor, before: int, total: int) -> Tensor:
    """Weights (b, q) of tokens -> an additive attention bias (b, 1, 1, total).

    Log weights on the tokens' key columns, which begin at `before`: weight 1 changes nothing, weight 0
    closes a token. Scaling the tokens themselves would not be neutral at 0.
    """
    columns = weights.float().log().clamp_min(CLOSED)
    after = total - before - weights.shape[1]
    return rearrange(F.pad(columns, (before, after)), "b k -> b 1 1 k")


@dataclass
class FusedRows:
    """What a fused forward pass of diffusers' transformer leaves for the loss."""

    rows: list[Tensor] = field(default_factory=list)  # after the last block (b, q, width), a call each


@contextmanager
def fuse_tokens(
    transformer: nn.Module,
    tokens: Tensor,
    *,
    grid: tuple[int, int],
    first_axis: float,
    target_tokens: int,
    weights: Tensor | None = None,
) -> Iterator[FusedRows]:
    """Within it, diffusers' FluxTransformer2DModel runs with geometry tokens (b, q, width).

    Call it as ever, with `hidden_states` of target and references and their `img_ids`, the first
    `target_tokens` of which are the target's; the output has the rows of `hidden_states`. Gradients reach the
    tokens. `weights` (b, q) in [0, inf) are strengths, None for 1.
    """
    fused = FusedRows()
    count = tokens.shape[1]

    def extend_ids(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        ids = kwargs["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        if holds_first_axis(ids, first_axis):
            raise ValueError(
                f"Expected no image token with first id {first_axis:g}, the geometry tokens' own, got some. "
                "Number the references otherwise, or fuse one connector at a time."
            )
        own = spread_ids(ids[:target_tokens], grid, first_axis)
        kwargs = {**kwargs, "img_ids": torch.cat([ids, own])}
        if weights is not None:
            before = len(ids) + kwargs["encoder_hidden_states"].shape[1]
            bias = key_bias(weights, before, before + count).to(kwargs["hidden_states"])
            kwargs["joint_attention_kwargs"] = {
                **(kwargs.get("joint_attention_kwargs") or {}), "attention_mask": bias,
            }  # fmt: skip
        return args, kwargs

    def append(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return torch.cat([out, tokens.to(out).expand(len(out), -1, -1)], dim=1)

    def read(module: nn.Module, args: tuple) -> None:
        fused.rows.append(args[0][:, -count:])

    def crop(module: nn.Module, args: tuple, out: Any) -> Any:
        if isinstance(out, tuple):
            return (out[0][:, :-count], *out[1:])
        out.sample = out.sample[:, :-count]
        return out

    hooks = [
        transformer.register_forward_pre_hook(extend_ids, with_kwargs=True),
        transformer.x_embedder.register_forward_hook(append),
        transformer.norm_out.register_forward_pre_hook(read),
        transformer.register_forward_hook(crop),
    ]
    try:
        yield fused
    finally:
        for hook in hooks:
            hook.remove()


def fits_image(size: tuple[int, int], latent: tuple[int, int], ratio: int) -> bool:
    """Whether a latent (h, w) can be of an image (height, width), scaled and then cropped by the VAE.

    `ratio`: pixels a latent pixel. The VAE crops to whole latent pixels, at most one on each axis.
    """
    scales = [
        ((side - 1) * ratio / length, (side + 1) * ratio / length) for side, length in zip(latent, size)
    ]
    return max(low for low, _ in scales) <= min(high for _, high in scales)
