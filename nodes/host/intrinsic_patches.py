"""Other nodes' work inside the model, kept on the image's branch, and our attention put beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.ldm.modules.attention import optimized_attention, optimized_attention_masked
from torch import Tensor

from ...models.intrinsic_ldm.attention import Coupling, Inside
from ...models.intrinsic_ldm.rows import Rows

OVERRIDE = "optimized_attention_override"


def unet_attention(layer: int, coupling: Coupling) -> Callable:
    """Core's attn1 replacement for one layer; what it calls besides is what core itself would have called."""

    def attend(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        heads, precision = extra["n_heads"], extra.get("attn_precision")

        def plain(q, k, v):
            return optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=extra)

        return coupling.attend(layer, q, k, v, heads=heads, plain=plain, inner=host_attention(heads, precision, extra))

    return attend


def host_attention(heads: int, precision, options: dict) -> Inside | None:
    """An attention that another pack has put into the model, for our op to call; None where there is none, and the op is faster."""
    if OVERRIDE not in options:
        return None

    def call(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
        named = {"attn_precision": precision, "skip_reshape": True, "skip_output_reshape": True, "transformer_options": options}
        if abs(scale - q.shape[-1] ** -0.5) > 1e-6 * scale:
            raise ValueError(f"The scale {scale} arrived, but core's attention has 1/sqrt({q.shape[-1]}); leave it out.")
        if bias is None:
            return optimized_attention(q, k, v, heads, **named)
        return optimized_attention_masked(q, k, v, heads, mask=bias.expand(*bias.shape[:2], q.shape[2], bias.shape[3]), **named)

    return call


def pixart_attention(module, layer: int, coupling: Coupling, options: Callable[[], dict]) -> Callable:
    """A forward for PixArt's self-attention, which core gives no place for a replacement; `options` has the call's own."""

    def forward(x: Tensor, mask=None, HW=None, block_id=None) -> Tensor:  # noqa: N803 - core's name
        rows, tokens, width = x.shape
        q, k, v = module.qkv(x).reshape(rows, tokens, 3, width).unbind(2)

        def plain(q, k, v):  # core gives PixArt's attention no options, so no override reaches it there
            parts = [tensor.reshape(rows, -1, module.num_heads, module.head_dim).transpose(1, 2) for tensor in (q, k, v)]
            return optimized_attention(*parts, module.num_heads, mask=None, skip_reshape=True)

        inner = host_attention(module.num_heads, None, options())
        out = coupling.attend(layer, module.q_norm(q), module.k_norm(k), v, heads=module.num_heads, plain=plain, inner=inner)
        return module.proj(out.reshape(rows, tokens, width))

    return forward


def with_attention(options: dict, attention: dict[tuple, Callable]) -> dict:
    """Model options with our self-attention in every layer. A layer that another node has replaced is refused by name."""
    replaced = options.get("transformer_options", {}).get("patches_replace", {})
    taken = replaced.get("attn1", {})
    for place in attention:
        other = taken.get(place, taken.get(place[:2]))
        if other is not None:
            name = f"{getattr(other, '__module__', '')}.{getattr(other, '__qualname__', type(other).__name__)}"
            raise ValueError(
                f"Self-attention {' '.join(map(str, place))} is already replaced by {name}, and one layer can follow one node only: take "
                "that node (PAG, SAG, HyperTile, a reference or attention pack) out of the model's line."
            )
    return with_replacements(options, {"attn1": taken | attention})


def with_replacements(options: dict, replacements: dict[str, dict]) -> dict:
    """A copy of model options with whole tables of replacements exchanged."""
    inner = options.get("transformer_options", {})
    return options | {"transformer_options": inner | {"patches_replace": inner.get("patches_replace", {}) | replacements}}


def prompt_attention_for(options: dict, rows: Callable[[], Rows]) -> dict:
    """Replacements of prompt attention (IPAdapter's way in) seen by the image rows only; the intrinsic rows get core's own."""
    table = options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})
    return with_replacements(options, {"attn2": {place: image_rows_only(fn, rows) for place, fn in table.items()}}) if table else options


def image_rows_only(replacement: Callable, rows: Callable[[], Rows]) -> Callable:
    def attend(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        now = rows()
        image, maps = ([now.select(tensor, stream).flatten(0, 1) for tensor in (q, k, v)] for stream in now.streams)
        parts = [
            replacement(*image, extra),
            optimized_attention(*maps, extra["n_heads"], attn_precision=extra.get("attn_precision"), transformer_options=extra),
        ]
        return torch.stack([part.unflatten(0, (len(now.chunks), now.batch)) for part in parts], dim=1).flatten(0, 2)

    return attend


class ImageControl:
    """A ControlNet that sees the image rows only; the intrinsic rows get nothing added."""

    def __init__(self, control, batch: int):
        self.control, self.batch = control, batch

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int, transformer_options: dict):
        rows = Rows(tuple(range(batched_number)), self.batch)
        rows.check(x_noisy.shape[0])

        def image(value):
            is_rows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows.count
            return rows.select(value, "image").flatten(0, 1) if is_rows else value

        seen = {name: image(value) for name, value in cond.items()}
        found = self.control.get_control(image(x_noisy), image(t), seen, batched_number, transformer_options)
        if found is None:
            return None
        return {place: [None if part is None else self._spread(part, rows) for part in parts] for place, parts in found.items()}

    def _spread(self, part: Tensor, rows: Rows) -> Tensor:
        whole = part.new_zeros(rows.count, *part.shape[1:])
        rows.select(whole, "image").copy_(part.unflatten(0, (-1, rows.batch)) if part.shape[0] > 1 else part)
        return whole
