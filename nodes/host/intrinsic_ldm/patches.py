"""Our self-attention as a model patch, and other nodes' patches restricted to the image rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from comfy.ldm.modules.attention import optimized_attention, optimized_attention_masked
from einops import rearrange
from torch import Tensor

from ....models.intrinsic_ldm.attention import Coupling, Inside
from ....models.intrinsic_ldm.rows import Rows
from .hooks import name_of

OVERRIDE = "optimized_attention_override"


def preferred_by(module) -> dict:
    """The attention that a checkpoint's own settings ask of core for a module: cores from about 0.38 on take
    it as a keyword, and hold it in the module.
    """
    chosen = getattr(module, "comfy_attention", None)
    return {} if chosen is None else {"preferred_attention": chosen}


def unet_attention(module, layer: int, coupling: Coupling, tried: list | None) -> Callable:
    """Core's attn1 replacement for one layer, whose own module is `module`; passes of one stream use core's
    own attention.

    `tried` lists the attention overrides of other packs that are known to apply an attention bias; None if
    the run needs no bias, as w is 0 or 1 and the same in all layers.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        heads, precision = extra["n_heads"], extra.get("attn_precision")

        def plain(q, k, v):
            named = {"attn_precision": precision, "transformer_options": extra}
            return optimized_attention(q, k, v, heads, **named, **preferred_by(module))

        inner = host_attention(q, heads, precision, extra, tried)
        return coupling.attend(layer, q, k, v, heads=heads, plain=plain, inner=inner)

    return attend


def host_attention(like: Tensor, heads: int, precision, options: dict, tried: list | None) -> Inside | None:
    """Another pack's attention override, wrapped for our op to call; None if there is none.

    Without an override our op is faster than core's attention.
    """
    if OVERRIDE not in options:
        return None

    def call(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
        named = {
            "attn_precision": precision,
            "skip_reshape": True,
            "skip_output_reshape": True,
            "transformer_options": options,
        }
        if abs(scale - q.shape[-1] ** -0.5) > 1e-6 * scale:
            raise ValueError(
                f"Expected the scale of ComfyUI's attention, 1/sqrt({q.shape[-1]}), got {scale}. Leave it "
                "out."
            )
        if bias is None:
            return optimized_attention(q, k, v, heads, **named)
        return optimized_attention_masked(
            q, k, v, heads, mask=bias.expand(*bias.shape[:2], q.shape[2], bias.shape[3]), **named
        )

    override = options[OVERRIDE]
    if tried is not None and not any(override is other for other in tried):
        if not takes_weights(call, like.new_empty(0), heads, like.shape[-1] // heads):
            raise ValueError(
                f"Expected an attention function that applies masks, got {name_of(behind_setter(override))}, "
                "which another node installed. Remove that node from the model's chain, or set schedule to "
                "constant with weight 1, which needs no mask."
            )
        tried.append(override)
    return call


def behind_setter(override: Callable) -> Callable:
    """The function wrapped by core's set_model_optimized_attention, for its name in messages."""
    return (
        inspect.getclosurevars(override).nonlocals.get("optimized_attention", override)
        if inspect.isfunction(override)
        else override
    )


def takes_weights(call: Inside, like: Tensor, heads: int, width: int) -> bool:
    """Whether an attention applies an additive bias, measured on small random q and k.

    Keys with bias -inf must have no effect, and keys repeated twice with bias log(1/2) that of one copy. The
    values differ by more than the rounding error of an attention that computes in 8 bits.
    """
    count, half = 32, math.log(0.5)
    generator = torch.Generator().manual_seed(0)
    q, once, twice, unseen = (
        torch.randn(1, heads, count, width, generator=generator).to(like) * 0.1 for _ in range(4)
    )
    low, high, huge = (torch.full_like(q, value) for value in (-1.0, 1.0, 10.0))
    bias = torch.tensor([0.0, half, half, -math.inf]).repeat_interleave(count).to(like)[None, None, None]
    scale = width**-0.5
    keys, values = torch.cat([once, twice, twice, unseen], 2), torch.cat([low, high, high, huge], 2)
    biased = call(q, keys, values, scale=scale, bias=bias)
    expected = call(q, torch.cat([once, twice], 2), torch.cat([low, high], 2), scale=scale)
    return bool((biased - expected).abs().max() < 0.1)


def pixart_attention(
    module, layer: int, coupling: Coupling, options: Callable[[], dict], tried: list | None
) -> Callable:
    """A forward for PixArt's self-attention module, as core has no attn1 replacement for it.

    `options` returns the transformer_options of the current call.
    """

    def forward(x: Tensor, mask=None, HW=None, block_id=None) -> Tensor:  # noqa: N803 - core's name
        q, k, v = rearrange(module.qkv(x), "b n (three c) -> three b n c", three=3)

        def plain(q, k, v):  # as in core, which passes PixArt's attention no options and so no override
            q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=module.num_heads) for x in (q, k, v))
            named = {"mask": None, "skip_reshape": True}
            return optimized_attention(q, k, v, module.num_heads, **named, **preferred_by(module))

        inner = host_attention(q, module.num_heads, None, options(), tried)
        out = coupling.attend(
            layer, module.q_norm(q), module.k_norm(k), v, heads=module.num_heads, plain=plain, inner=inner
        )
        return module.proj(out)

    return forward


def with_attention(options: dict, attention: dict[tuple, Callable]) -> dict:
    """Model options with our self-attention in every layer; ValueError if another node has replaced one."""
    replaced = options.get("transformer_options", {}).get("patches_replace", {})
    replacements = replaced.get("attn1", {})
    for key in attention:
        other = replacements.get(key, replacements.get(key[:2]))
        if other is not None:
            raise ValueError(
                f"Expected the model's own self-attention in {' '.join(map(str, key))}, got a replacement, "
                f"{name_of(other)}. Remove that node (a reference or attention pack) from the model's chain."
            )
    return with_replacements(options, {"attn1": replacements | attention})


def with_replacements(options: dict, replacements: dict[str, dict]) -> dict:
    """A copy of model options with the given tables of patches_replace exchanged."""
    inner = options.get("transformer_options", {})
    return options | {
        "transformer_options": inner | {"patches_replace": inner.get("patches_replace", {}) | replacements}
    }


def prompt_attention_for(options: dict, rows: Callable[[], Rows]) -> dict:
    """Model options whose cross-attention replacements (such as IPAdapter's) apply to the image rows only.

    The intrinsic rows use core's own cross-attention.
    """
    table = options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})
    return (
        with_replacements(
            options, {"attn2": {key: image_rows_only(fn, rows) for key, fn in table.items()}}
        )
        if table
        else options
    )


def image_rows_only(replacement: Callable, rows: Callable[[], Rows]) -> Callable:
    def attend(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        now = rows()
        image, maps = (
            [rearrange(now.select(x, stream), "chunk b n c -> (chunk b) n c") for x in (q, k, v)]
            for stream in now.streams
        )
        outputs = [
            replacement(*image, extra),
            optimized_attention(
                *maps, extra["n_heads"], attn_precision=extra.get("attn_precision"), transformer_options=extra
            ),
        ]
        return rearrange(outputs, "stream (chunk b) n c -> (chunk stream b) n c", b=now.batch)

    return attend


class ImageControl:
    """A ControlNet applied to the image rows only; its residuals for the intrinsic rows are zero."""

    def __init__(self, control, batch: int):
        self.control, self.batch = control, batch

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int, transformer_options: dict
    ):
        rows = Rows(tuple(range(batched_number)), self.batch)
        rows.check(x_noisy.shape[0])

        def image(value):
            is_rows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows.count
            if not is_rows:
                return value
            return rearrange(rows.select(value, "image"), "chunk b ... -> (chunk b) ...")

        image_cond = {name: image(value) for name, value in cond.items()}
        residuals = self.control.get_control(
            image(x_noisy), image(t), image_cond, batched_number, transformer_options
        )
        if residuals is None:
            return None
        return {
            key: [None if tensor is None else self._pad_rows(tensor, rows) for tensor in tensors]
            for key, tensors in residuals.items()
        }

    def _pad_rows(self, residual: Tensor, rows: Rows) -> Tensor:
        """A residual of the image rows, (chunks * b, ...) or (1, ...), for all rows."""
        padded = residual.new_zeros(rows.count, *residual.shape[1:])
        by_chunk = residual.unflatten(0, (-1, rows.batch)) if residual.shape[0] > 1 else residual
        rows.select(padded, "image").copy_(by_chunk)
        return padded
