"""The forward kernel with other tiles than its own, as rivals, and what a run concludes by head width."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..segment_attention import launch
from ..segment_attention.launch import Config
from ..segment_attention.segments import Segments, full_weight
from .results import Timing
from .rivals import Call

TILE = "tile "  # begins the name of such a rival
# by head width, for compute capability 9: queries, keys, warps, stages, whether the width is one padded part
CANDIDATES: dict[int, tuple[Config, ...]] = {
    # instructions of the inner loop for a score, by Triton 3.6: 8.2, then 7.3 and 9.2 as one part of 64
    40: (Config(128, 64, 4, 2), Config(64, 128, 4, 3, whole=True), Config(64, 64, 4, 3, whole=True)),
    64: (Config(64, 128, 4, 3), Config(128, 128, 8, 2), Config(64, 64, 4, 3)),
    72: (Config(128, 128, 8, 2), Config(64, 128, 4, 2), Config(64, 64, 4, 3)),
    80: (Config(128, 128, 8, 2), Config(64, 128, 4, 2), Config(64, 64, 4, 3)),
    128: (Config(128, 64, 8, 3), Config(128, 128, 8, 2), Config(64, 64, 4, 3), Config(64, 128, 4, 2)),
}


def tile_calls(segments: Segments, log_weight: list, like: Tensor) -> dict[str, Call]:
    """A call for each candidate of the head width of `like`, with the weights on its device."""
    weight = full_weight(log_weight, like, segments).to(like.device)
    scale = like.shape[3] ** -0.5

    def with_tile(tile: Config) -> Call:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            given = (q, k, v, segments, weight)
            return launch.forward(*given, scale=scale, need_lse=False, tile=tile)[0]

        return call

    return {describe(tile): with_tile(tile) for tile in CANDIDATES.get(like.shape[3], ())}


def describe(tile: Config) -> str:
    part = ", one part" if tile.whole else ""
    return f"{TILE}{tile.queries} x {tile.keys}, {tile.warps} warps, {tile.stages} stages{part}"


def list_conclusions(times: Iterable[Timing], weight: str = "mixed") -> list[str]:
    """Of each shape and mode the kernel's fastest tile against our composition of torch's attention.

    Where the second is faster, the shape's width belongs into `preference.LEFT_TO_TORCH`.
    """
    found: dict[tuple[str, tuple, str], dict[str, float]] = {}
    for timing in times:
        if timing.weight == weight:
            found.setdefault((timing.shape, timing.size, timing.mode), {})[timing.rival] = timing.median
    lines = []
    for (shape, size, mode), medians in found.items():
        kernels = {name: ms for name, ms in medians.items() if name.startswith((TILE, "ours, triton"))}
        composed = medians.get("ours, composition")
        if not kernels or composed is None:
            continue
        best = min(kernels, key=kernels.get)
        winner = "the kernel's" if kernels[best] <= composed else "left to torch"
        where = f"width {size[3]}, {size[2]} queries, weights on the {'CPU' if mode == 'eager' else 'GPU'}"
        lines.append(
            f"{where} ({shape}): {winner}, {kernels[best]:.3f} ms by {best} against {composed:.3f} by torch"
        )
    return lines
