"""Running the Triton kernels: limits, static configurations, device tables, the self-check. Triton is imported at the first launch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..dispatch import Trust
from .composition import compose
from .segments import Segments

TRUST = Trust()
WIDEST = 160


@dataclass(frozen=True)
class Config:
    """Static, so that the first use costs no tuning and two runs round alike. Queries and keys of a tile, warps, pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


def config(kernel: str, capability: tuple[int, int] | None, width: int) -> Config:
    """For "forward"; capability None is an AMD card."""
    if capability is None:
        return Config(64, 64, 4, 1) if width < 128 else Config(64, 32, 4, 1)
    if width > 128:
        return Config(128, 64, 8, 2) if capability[0] == 9 else Config(64, 32, 4, 3)
    return Config(128, 128, 8, 2) if capability[0] == 9 else Config(128, 64, 8, 2)


def split_width(width: int) -> tuple[int, int]:
    """A power of two, and the rest padded to a power of two of at least 16: 72 -> (64, 16)."""
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return (first, 0 if rest == 0 else max(16, 1 << (rest - 1).bit_length())) if first >= 16 else (16, 0)


def interprets() -> bool:
    """Triton's own interpreter, for tests on a machine without a GPU."""
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
        return f"compute capability {capability[0]}.{capability[1]} has no tensor cores Triton can use, 8.0 is needed"
    return triton_reason()


def triton_reason() -> str | None:
    """Why triton cannot be imported, or None. Imports it."""
    try:
        import triton  # noqa: F401
    except (ImportError, OSError) as error:
        return f"triton cannot be imported ({error})"
    return None


def call_reason(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernels do not take these tensors, or None."""
    width = q.shape[3]
    exact = torch.float32 if interprets() else torch.bfloat16  # the interpreter's bfloat16 products are wrong
    if q.dtype not in (torch.float16, exact):
        return f"the kernel takes float16 and {str(exact).removeprefix('torch.')}, got {str(q.dtype).removeprefix('torch.')}"
    if width % 8 or not 16 <= width <= WIDEST:
        return f"the kernel takes head widths of 16 to {WIDEST} in steps of 8, got {width}"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.stride(3) != 1:
            return f"the kernel needs the head width of {name} to lie together in memory, its stride is {tensor.stride(3)}"
        if tensor.data_ptr() % 16 or any(tensor.stride(axis) % 8 for axis in range(3)):
            return f"the kernel needs {name} aligned to 16 bytes, its strides are {tuple(tensor.stride())}"
    return machine_reason(q.device) or TRUST.reason(variant(q))


def variant(q: Tensor) -> tuple[str, str, int]:
    return str(q.device), str(q.dtype).removeprefix("torch."), q.shape[3]


@lru_cache(maxsize=256)
def tile_table(queries: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """(tiles, 3) int32: segment, first and last-plus-one query."""
    tiles, stop = [], 0
    for segment, length in enumerate(queries):
        start, stop = stop, stop + length
        tiles += [(segment, first, min(first + size, stop)) for first in range(start, stop, size)]
    return torch.tensor(tiles, dtype=torch.int32, device=device)


@lru_cache(maxsize=256)
def source_table(segments: Segments, batch: int, device: torch.device) -> Tensor:
    """(T, B, 3) int32: row, first and last-plus-one key."""
    rows = segments.rows(batch)
    table = [[(row, s.start, s.start + s.length) for row in of] for of, s in zip(rows, segments.sources)]
    return torch.tensor(table, dtype=torch.int32, device=device)


def device_weight(log_weight: Tensor, device: torch.device) -> tuple[Tensor, int, int]:
    """Contiguous float32 on the device, and the strides of its rows and heads (0 where one serves all)."""
    weight = log_weight.to(device, torch.float32, non_blocking=True).contiguous()
    return weight, *(weight.stride(axis) if weight.shape[axis] > 1 else 0 for axis in (0, 1))


def capability_of(q: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(q.device) if q.device.type == "cuda" else (8, 0)


def forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, log_weight: Tensor, *, scale: float, need_lse: bool, tile: Config | None = None
) -> tuple[Tensor, Tensor | None]:
    """As `compose`, in one launch. float16, bfloat16; float32 in the interpreter."""
    from .kernel import forward_kernel

    (b, h, n, d), (d1, d2) = q.shape, split_width(q.shape[3])
    tile = tile or config("forward", capability_of(q), d)
    out = torch.empty(b, n, h, d, dtype=q.dtype, device=q.device).transpose(1, 2)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=q.device) if need_lse else None
    tiles = tile_table(segments.queries, tile.queries, q.device)
    weight, *weight_strides = device_weight(log_weight, q.device)
    even = all(source.length % tile.keys == 0 for source in segments.sources)
    with torch.cuda.device_of(q):
        forward_kernel[(len(tiles) * b * h,)](
            q, k, v, out, lse if lse is not None else out, weight, tiles, source_table(segments, b, q.device),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *weight_strides, len(tiles), n, h, b, scale,
            T=len(segments.sources), D=d, D1=d1, D2=d2, BM=tile.queries, BN=tile.keys, EVEN=even, LSE=need_lse,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse


def self_check(q: Tensor) -> str | None:
    """The kernel against torch's attention on 64 tokens of a variant, before it is trusted; what is wrong, or None."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 64, 2, q.shape[3], generator=generator).to(q.device, q.dtype).transpose(1, 2) for _ in range(3)]
    segments, weight = Segments.coupled(64, (1, 0)), torch.tensor([[[[0.0, -0.7]]], [[[0.0, 0.0]]]])
    ours, _ = forward(*made, segments, weight, scale=0.2, need_lse=True)
    theirs, _ = compose(*made, segments, weight, scale=0.2, need_lse=False)
    error = float((ours.float() - theirs.float()).abs().max())
    return None if error < 0.02 else f"its self-check is off by {error:.3g}"
