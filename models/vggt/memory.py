"""Peak memory of a forward pass beside the weights, estimated from tensor sizes."""

from __future__ import annotations

from collections.abc import Sequence

from .config import VggtConfig
from .framing import Frame

FLOAT32 = 4  # bytes
# tensors of x's size in a block: x, its norm, q k v, q and k rotated with their float32 copies, attention,
# hidden layer
BLOCK_COPIES = 14
DENSE_COPIES = 4  # tensors of the size of a dense head's largest map that exist at once


def count_sequence_tokens(config: VggtConfig, views: int, size: tuple[int, int]) -> int:
    """Tokens of all views of `size` (h, w) pixels."""
    rows, columns = (side // config.patch_size for side in size)
    return views * (config.special_tokens + rows * columns)


def taps_bytes(config: VggtConfig, views: int, size: tuple[int, int], width: int = FLOAT32) -> int:
    """Bytes of the aggregator's entries that are kept until the heads have run; `width` is bytes a number."""
    kept = len({*config.dpt_layers, config.depth - 1})
    return kept * count_sequence_tokens(config, views, size) * config.layer_dim * width


def estimate_memory(config: VggtConfig, views: int, size: tuple[int, int], width: int = FLOAT32) -> int:
    """Peak bytes, in the last blocks or in the dense head: an upper estimate."""
    pixels = size[0] * size[1]
    taps = taps_bytes(config, views, size, width)
    block = BLOCK_COPIES * count_sequence_tokens(config, views, size) * config.embed_dim * width
    coarse = 64 * (pixels // config.patch_size**2) * config.dpt_features
    head = DENSE_COPIES * FLOAT32 * (coarse + pixels * (config.dpt_features // 2 + 32))
    maps = views * pixels * FLOAT32 * 8  # the images and the heads' output maps
    return taps + max(block, head) + maps


def result_bytes(frames: Sequence[Frame]) -> int:
    """Bytes of the views at the images' own sizes: depth, confidence and image in float32, and the mask."""
    return sum(height * width * (5 * FLOAT32 + 1) for height, width in (frame.size for frame in frames))
