"""How much memory a run of the network takes beside its weights, from the sizes of its tensors."""

from __future__ import annotations

from collections.abc import Sequence

from .config import VggtConfig
from .framing import Frame

FLOAT32 = 4  # bytes
# of x in a block: x, its norm, q k v, both rotated with their float32 copies, attention and hidden layer
BLOCK_COPIES = 14
DENSE_COPIES = 4  # of a dense head's largest maps at once


def count_sequence_tokens(config: VggtConfig, views: int, size: tuple[int, int]) -> int:
    """Tokens of all views of `size` (h, w) pixels."""
    rows, columns = (side // config.patch_size for side in size)
    return views * (config.special_tokens + rows * columns)


def taps_bytes(config: VggtConfig, views: int, size: tuple[int, int], width: int = FLOAT32) -> int:
    """The aggregator's entries that are kept until the heads have run; `width` is bytes a number."""
    kept = len({*config.dpt_layers, config.depth - 1})
    return kept * count_sequence_tokens(config, views, size) * config.layer_dim * width


def estimate_memory(config: VggtConfig, views: int, size: tuple[int, int], width: int = FLOAT32) -> int:
    """Bytes at the peak, which lies in the last blocks or in the dense head: an upper estimate."""
    pixels = size[0] * size[1]
    taps = taps_bytes(config, views, size, width)
    block = BLOCK_COPIES * count_sequence_tokens(config, views, size) * config.embed_dim * width
    coarse = 64 * (pixels // config.patch_size**2) * config.dpt_features
    head = DENSE_COPIES * FLOAT32 * (coarse + pixels * (config.dpt_features // 2 + 32))
    maps = views * pixels * FLOAT32 * 8  # the images and what the heads say of them
    return taps + max(block, head) + maps


def result_bytes(frames: Sequence[Frame]) -> int:
    """Of the views at the images' own sizes: depth, confidence and image in float32, and the mask."""
    return sum(height * width * (5 * FLOAT32 + 1) for height, width in (frame.size for frame in frames))
