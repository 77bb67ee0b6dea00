"""Captions of the procedural world with the depth of their scenes: training samples of the tiny spatial
transformer, rendered at its own resolution when training starts, without images and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..world.captions import mirror_caption
from ..world.render import render_geometry
from ..world.scene import sample_scenes
from .caption_lm import scene_captions

RENDERED = 64  # scenes rendered at once

Tokenize = Callable[[Sequence[str]], list[list[int]]]


class WorldCaptionDepth(torch.utils.data.Dataset):
    """Sample 2 i is scene i, 2 i + 1 its mirror image.

    depth and mask (h, w), False in the sky; ids (k, s) and lengths (k,) of k captions, padded on the right.
    """

    def __init__(
        self, *, scenes: int, captions: int, seed: int, size: tuple[int, int], tokenize: Tokenize,
        template: str = "{}",
    ):  # fmt: skip
        found = sample_scenes(seed, scenes, split="train")
        texts = [scene_captions(scene, captions) for scene in found]
        both = [row for pair in texts for row in (pair, [mirror_caption(text) for text in pair])]
        self.ids, self.lengths = pad_tokens([tokenize([template.format(t) for t in row]) for row in both])
        parts = []
        for start in tqdm(range(0, scenes, RENDERED), desc="rendering", unit="batch", disable=None):
            parts.append(render_geometry(found[start : start + RENDERED], *size)[0])
        self.depth = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        depth = self.depth[index // 2]
        depth = depth.flip(-1) if index % 2 else depth
        mask = depth.isfinite()
        return {
            "depth": torch.where(mask, depth, 0.0), "mask": mask,
            "ids": self.ids[index], "lengths": self.lengths[index],
        }  # fmt: skip


def pad_tokens(rows: Sequence[Sequence[Sequence[Any]]]) -> tuple[Tensor, Tensor]:
    """ids (n, k, s), padded on the right, and lengths (n, k) of n rows of k texts' tokens."""
    lengths = torch.tensor([[len(tokens) for tokens in row] for row in rows])
    ids = torch.zeros(*lengths.shape, int(lengths.max()), dtype=torch.int64)
    for i, row in enumerate(rows):
        for k, tokens in enumerate(row):
            ids[i, k, : len(tokens)] = torch.tensor(tokens)
    return ids, lengths
