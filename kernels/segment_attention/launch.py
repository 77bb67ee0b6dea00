"""Launches the Triton kernels: limits, static configurations, device tables, self-checks.

Imports triton lazily.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..dispatch import Trust
from .backward import segment_attention_backward
from .reference import segment_attention_reference
from .segments import Segments, on_device

TRUST = Trust()
WIDEST = 160
LIMITS = f"float16 and bfloat16, head widths of 16 to {WIDEST} in steps of 8"


@dataclass(frozen=True)
class Config:
    """Queries and keys of a tile, warps, pipeline stages; whether the head width is one padded part.

    Static: no autotuning, and bit-equal results between runs.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    whole: bool = False


def config(kernel: str, capability: tuple[int, int] | None, width: int) -> Config:
    """For "forward", "query_gradient" or "key_gradient"; capability None is an AMD card."""
    if kernel != "forward":
        return _backward_config(kernel, capability, width)
    if capability is None:
        return (
            Config(64, 64, 4, 1)
            if width < 128
            else Config(64, 32, 4, 1)
            if width == 128
            else Config(128, 32, 8, 1)
        )
    if capability[0] == 9:
        if width <= 64:  # timed on an H200: at width 64 1.45 times as fast as 128 x 128, at 40 1.13 times
            return Config(64, 128, 4, 3) if width > 48 else Config(128, 64, 4, 2)
        return Config(128, 128, 8, 2) if width <= 80 else Config(128, 64, 8, 3 if width <= 128 else 2)
    if capability[0] >= 12 and width > 80:
        return Config(128, 32, 8, 3)
    return Config(128, 64, 8, 2) if width <= 128 else Config(64, 32, 4, 3)


def _backward_config(kernel: str, capability: tuple[int, int] | None, width: int) -> Config:
    if capability is None:
        if kernel == "query_gradient":
            return Config(32, 32, 4, 1) if width < 128 else Config(32, 16, 4, 1)
        return Config(16, 32, 4, 1) if width <= 80 else Config(16, 32, 8, 1)
    hopper = capability[0] == 9
    if kernel == "query_gradient":
        if capability == (8, 0) and width == 64:
            return Config(64, 64, 4, 2)  # the larger tile spills there alone
        return (
            Config(128, 64, 8, 2)
            if width <= (128 if hopper else 80)
            else Config(128 if width <= 128 else 64, 32, 8, 2)
        )
    if width <= 80:
        return Config(32 if capability[0] >= 12 else 64, 128, 8, 2)
    if width <= 128:
        return Config(32, 64, 4, 2)
    return Config(32 if hopper else 16, 64, 8, 2)


def split_width(width: int, whole: bool = False) -> tuple[int, int]:
    """A power of two, and the rest padded to a power of two of at least 16: 72 -> (64, 16).

    whole: one part padded to a power of two, 40 -> (64, 0).
    """
    if whole:
        return max(16, 1 << (width - 1).bit_length()), 0
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return (first, 0 if rest == 0 else max(16, 1 << (rest - 1).bit_length())) if first >= 16 else (16, 0)


def interprets() -> bool:
    """Whether Triton's interpreter runs the kernels, for tests on a machine without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def machine_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device at all, or None."""
    if interprets():
        return None
    if device.type != "cuda":
        return f"the kernel needs a CUDA device, the tensors are on {device.type}"
    if torch.version.hip:
        return "the kernel was never run on ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        major, minor = capability
        return f"compute capability {major}.{minor} has no tensor cores Triton can use, 8.0 is needed"
    return triton_reason()


def is_rdna(device: torch.device) -> bool:
    """AMD GPUs with wave32 and matrix instructions."""
    if not torch.version.hip or device.type != "cuda":
        return False
    return torch.cuda.get_device_properties(device).gcnArchName.startswith(("gfx11", "gfx12"))


@cache
def triton_reason() -> str | None:
    """Why triton cannot be imported, or None. Tries once per process: a failing import is slow."""
    try:
        import triton  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a broken install raises anything
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    return None


def call_reason(q: Tensor, k: Tensor, v: Tensor, direction: str = "forward") -> str | None:
    """Why the kernels of a direction, "forward" or "backward", do not take these tensors, or None."""
    width = q.shape[3]
    exact = torch.float32 if interprets() else torch.bfloat16  # the interpreter's bfloat16 products are wrong
    if q.dtype not in (torch.float16, exact):
        return f"the kernel takes float16 and {dtype_name(exact)}, got {dtype_name(q.dtype)}"
    if width % 8 or not 16 <= width <= WIDEST:
        return f"the kernel takes head widths of 16 to {WIDEST} in steps of 8, got {width}"
    if direction == "backward" and width > 128 and is_rdna(q.device):
        limit = "head widths of 16 to 128 on AMD's gfx11 and gfx12, whose registers hold no more"
        return f"the gradient kernels take {limit}, got {width}"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.stride(3) != 1:
            return f"the kernel needs stride 1 in the head width of {name}, its stride is {tensor.stride(3)}"
        if not is_aligned(tensor):
            return f"the kernel needs {name} aligned to 16 bytes, its strides are {tuple(tensor.stride())}"
    return machine_reason(q.device) or TRUST.reason(variant(q, direction))


def variant(q: Tensor, direction: str = "forward") -> tuple[str, str, str, int]:
    """The key under which self-checks and failures are remembered."""
    return direction, str(q.device), dtype_name(q.dtype), q.shape[3]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# These tables of a few hundred bytes are never freed: captured CUDA graphs keep reading them.
@cache
def tile_table(queries: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """(tiles, 3) int32: segment, first and last-plus-one query."""
    tiles, stop = [], 0
    for segment, length in enumerate(queries):
        start, stop = stop, stop + length
        tiles += [(segment, first, min(first + size, stop)) for first in range(start, stop, size)]
    return torch.tensor(tiles, dtype=torch.int32, device=device)


@cache
def source_table(segments: Segments, batch: int, device: torch.device) -> Tensor:
    """(T, B, 3) int32: row, first and last-plus-one key."""
    rows = segments.rows(batch)
    table = [[(row, s.start, s.start + s.length) for row in of] for of, s in zip(rows, segments.sources)]
    return torch.tensor(table, dtype=torch.int32, device=device)


def device_weight(log_weight: Tensor, device: torch.device) -> tuple[Tensor, int, int]:
    """Contiguous float32 on the device, and the strides of its rows and heads (0 where broadcast)."""
    weight = on_device(log_weight, device).to(torch.float32).contiguous()
    return weight, *(weight.stride(axis) if weight.shape[axis] > 1 else 0 for axis in (0, 1))


def capability_of(q: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(q.device) if q.device.type == "cuda" else (8, 0)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    log_weight: Tensor,
    *,
    scale: float,
    need_lse: bool,
    tile: Config | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `compose`, in one launch. float16, bfloat16; float32 in the interpreter."""
    from .kernel import forward_kernel

    plan = plan_forward(q, k, v, segments, log_weight, scale=scale, need_lse=need_lse, tile=tile)
    out, lse = plan.outputs(q)
    weight, *_ = device_weight(log_weight, q.device)
    with torch.cuda.device_of(q):
        forward_kernel[(plan.programs,)](
            q, k, v, out, out if lse is None else lse, weight, *plan.tables, *plan.numbers,
            **plan.constants, **plan.options,
        )  # fmt: skip
    return out.transpose(1, 2), lse


@dataclass(frozen=True)
class ForwardPlan:
    """A launch of the forward kernel but for its tensors: what follows from their layout."""

    shape: tuple[int, int, int, int]  # of the output (B, N, H, D)
    programs: int
    tables: tuple[Tensor, Tensor]  # tiles, sources
    numbers: tuple[int | float, ...]
    constants: dict[str, int | bool]  # in the order of the kernel's signature
    options: dict[str, int | bool]
    need_lse: bool

    def outputs(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        b, n, h, _ = self.shape
        out = torch.empty(self.shape, dtype=like.dtype, device=like.device)
        return out, torch.empty((b, h, n), dtype=torch.float32, device=like.device) if self.need_lse else None


def plan_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, log_weight: Tensor, *,
    scale: float, need_lse: bool, tile: Config | None = None,
) -> ForwardPlan:  # fmt: skip
    b, h, n, d = q.shape
    tile = tile or config("forward", capability_of(q), d)
    d1, d2 = split_width(d, tile.whole)
    tiles = tile_table(segments.queries, tile.queries, q.device)
    rows, heads, *sections = log_weight.shape  # contiguous when it is passed
    of_weight = (heads * math.prod(sections) if rows > 1 else 0, math.prod(sections) if heads > 1 else 0)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], n * h * d, d, h * d)
    return ForwardPlan(
        (b, n, h, d),
        len(tiles) * b * h,
        (tiles, source_table(segments, b, q.device)),
        (*strides, *of_weight, len(tiles), n, h, b, scale),
        {
            "T": len(segments.sources), "D": d, "D1": d1, "D2": d2, "BM": tile.queries, "BN": tile.keys,
            "EVEN": all(source.length % tile.keys == 0 for source in segments.sources), "LSE": need_lse,
        },
        {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        need_lse,
    )  # fmt: skip


def backward(
    grads: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    outputs: tuple[Tensor, Tensor], segments: Segments, *,
    scale: float, need_weight: bool = True, tiles: tuple[Config, Config] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `segment_attention_backward`, in two launches. Without `need_weight` d log_weight is zeros."""
    from .kernel_backward import key_gradient_kernel, query_gradient_kernel

    q, k, v, log_weight = inputs
    (b, h, n, d), (r, _, m, _), (d1, d2) = q.shape, k.shape, split_width(q.shape[3])
    out, lse, dlse = rows_together(outputs[0]), outputs[1], grads[1].contiguous()
    do = grads[0] if is_aligned(grads[0]) else rows_together(grads[0].contiguous())
    by_query, by_key = tiles or (
        config(name, capability_of(q), d) for name in ("query_gradient", "key_gradient")
    )
    dq, dk, dv = (
        torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for tensor in (q, k, v)
    )
    table, count = tile_table(segments.queries, by_query.queries, q.device), -(-m // by_key.keys)
    sources, slots = source_table(segments, b, q.device), len(segments.sources)
    delta, dw = (
        torch.empty_like(lse),
        torch.empty(len(table), b, h, slots, dtype=torch.float32, device=q.device),
    )
    weight, *weight_strides = device_weight(log_weight, q.device)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    widths = {"T": slots, "D": d, "D1": d1, "D2": d2}
    with torch.cuda.device_of(q):
        query_gradient_kernel[(len(table) * b * h,)](
            q, k, v, out, do, dq, lse, dlse, delta, dw, weight, table, sources,
            *strides, *dq.stride()[:3], *do.stride()[:3], *weight_strides, len(table), n, h, b, scale,
            **widths, BM=by_query.queries, BN=by_query.keys, DW=need_weight,
            EVEN=all(source.length % by_query.keys == 0 for source in segments.sources),
            num_warps=by_query.warps, num_stages=by_query.stages, enable_fp_fusion=True,
        )  # fmt: skip
        key_gradient_kernel[(count * r * h,)](
            q, k, v, do, dk, dv, lse, delta, weight, range_table(segments, q.device), sources,
            *strides, *dk.stride()[:3], *do.stride()[:3], *weight_strides, count, n, h, b, r, m, scale,
            **widths, S=len(segments.queries), BM=by_key.queries, BN=by_key.keys,
            EVEN=is_even(segments, by_key),
            num_warps=by_key.warps, num_stages=by_key.stages, enable_fp_fusion=True,
        )  # fmt: skip
    return (
        dq,
        dk,
        dv,
        weight_gradient(dw, log_weight, segments, by_query) if need_weight else torch.zeros_like(log_weight),
    )


def weight_gradient(parts: Tensor, log_weight: Tensor, segments: Segments, tile: Config) -> Tensor:
    """Partial sums per tile (tiles, B, H, T) -> shape of log_weight, summed in a fixed order."""
    counts = [-(-length // tile.queries) for length in segments.queries]
    whole = torch.stack([part.sum(0) for part in parts.split(counts)], dim=2)
    for axis in (0, 1):
        whole = whole.sum(axis, keepdim=True) if log_weight.shape[axis] == 1 else whole
    return whole.to(log_weight.device, log_weight.dtype)


def is_even(segments: Segments, tile: Config) -> bool:
    """Whether no tile of keys crosses the end of a source, and query segments are multiples of the tile."""
    keys = all(
        source.start % tile.keys == 0 and source.length % tile.keys == 0 for source in segments.sources
    )
    return keys and all(length % tile.queries == 0 for length in segments.queries)


def is_aligned(tensor: Tensor) -> bool:
    whole = tensor.data_ptr() % 16 == 0 and all(tensor.stride(axis) % 8 == 0 for axis in range(3))
    return whole and tensor.stride(3) == 1


def rows_together(tensor: Tensor) -> Tensor:
    """(B, H, N, D), stored as (B, N, H, D)."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@cache
def range_table(segments: Segments, device: torch.device) -> Tensor:
    """(S, 2) int32: first and last-plus-one query of each segment."""
    return torch.tensor(segments.query_ranges(), dtype=torch.int32, device=device)


def self_check(q: Tensor) -> str | None:
    """The forward kernel against the reference on 64 tokens of a variant: what is wrong, or None.

    Not against torch's attention: cuDNN takes half a second to plan each new shape.
    """
    *made, segments, weight = _sample(q)
    given = (*made, segments, weight)
    return _compare(forward(*given, scale=0.2, need_lse=True), segment_attention_reference(*given, scale=0.2))


def backward_self_check(q: Tensor) -> str | None:
    """The backward kernels against `segment_attention_backward`, likewise."""
    *made, segments, weight = _sample(q)
    outputs = segment_attention_reference(*made, segments, weight, scale=0.2)
    given = ((made[0].roll(1, 2), torch.zeros_like(outputs[1])), (*made, weight), outputs, segments)
    return _compare(backward(*given, scale=0.2), segment_attention_backward(*given, scale=0.2))


def _sample(q: Tensor) -> tuple[Tensor, Tensor, Tensor, Segments, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = (
        torch.randn(2, 64, 2, q.shape[3], generator=generator).to(q.device, q.dtype).transpose(1, 2)
        for _ in range(3)
    )
    return *made, Segments.coupled(64, (1, 0)), torch.tensor([[[[0.0, -0.7]]], [[[0.0, 0.0]]]])


def _compare(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str | None:
    """Half precision rounds by about 1e-3; a wrong kernel is off by much more."""
    errors = [
        float((one.float() - other.float()).norm() / other.float().norm()) for one, other in zip(ours, theirs)
    ]
    return None if all(error < 0.02 for error in errors) else f"its self-check is off by {max(errors):.3g}"
