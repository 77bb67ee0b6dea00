"""Geometry tokens of references and depth latents of targets, in shards of their own.

    OUTPUT/shard-00000.safetensors
        `geometry`      float16 (n, k, c), the geometry encoder's tokens of the reference
        `depth_latent`  float16 (n, c, h, w), the target's depth through the editor's autoencoder
        `depth_image`   float16 (n, 1, H, W), the same before it, in [-1, 1], for the loss in pixels

A later geometry encoder is a new folder; the other encodings stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.training.data import FolderDataset
from ...core.training.shard_writer import Summary
from ...core.weights.registry import hash_file
from ...vggt.pipeline import TINY_NETWORK, VggtPipeline
from .encode import Encoders, write_edit_encodings
from .triples import Triple, open_triples

FORMAT, VERSION = "spatialweave-edit-geometry", 1
KEYS = ("geometry", "depth_latent", "depth_image")
PLACE = ("index", "mirrored")  # entries of a line that say which sample it is
Teacher = Literal["given", "vggt"]


def encode_geometry(
    source: str | Path,
    output: str | Path,
    encoders: Encoders,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    teacher: Teacher = "given",
    pixels: bool = False,
    size: tuple[int, int] | None = None,
    mirror: bool = False,
    shard_size: int = 500,
) -> Summary:
    """Encode the geometry of a folder's triples.

    `teacher`: the target's depth as the folder gives it, or as the geometry encoder sees it. `pixels` stores
    depth_image, too.
    """
    pipeline = VggtPipeline.from_file(weights, device=device)

    def encode(batch: Sequence[Triple]) -> dict[str, Tensor]:
        tokens = [pipeline.encode(each.reference).tokens for each in batch]
        depth = [find_target_depth(each, teacher, pipeline) for each in batch]
        images = torch.stack([depth_to_image(each) for each in depth])[:, None]
        latents = encoders.encode_images(images.expand(-1, 3, -1, -1))
        tensors = {"geometry": torch.cat(tokens).half(), "depth_latent": latents.half()}
        return tensors | ({"depth_image": images.half()} if pixels else {})

    facts = {
        "format": FORMAT, "version": VERSION, **encoders.facts(), "teacher": teacher, "pixels": pixels,
        "geometry": hash_file(Path(weights) if weights else TINY_NETWORK), "mirror": mirror,
    }  # fmt: skip
    return write_edit_encodings(
        open_triples(source), output, facts, encode, size=size, mirror=mirror, shard_size=shard_size
    )


def find_target_depth(triple: Triple, teacher: Teacher, pipeline: VggtPipeline) -> Tensor:
    """The target's depth (h, w), larger = farther; 0 or infinite where it is not known."""
    if teacher == "given":
        if triple.depth is None:
            raise ValueError(
                "Expected the target's depth with each edit, got one without. Add depth files, or choose the "
                "teacher vggt."
            )
        return triple.depth
    view = pipeline(triple.target).view
    return torch.where(view.mask[0], view.depth[0], torch.inf)


def depth_to_image(depth: Tensor) -> Tensor:
    """Inverse depth (h, w) from -1, the farthest, to 1, the nearest; unknown pixels are the farthest."""
    depth = depth.float()
    inverse = torch.where((depth > 0) & depth.isfinite(), 1 / depth, 0.0)
    low, high = inverse.min(), inverse.max()
    return 2 * (inverse - low) / (high - low).clamp(min=1e-6) - 1


class GuidedEdits(torch.utils.data.Dataset):
    """Encodings of edits, each with the geometry of the same sample from another folder."""

    def __init__(self, edits: FolderDataset, geometry: FolderDataset):
        self.edits, self.geometry = edits, geometry
        self.rows = {place(geometry.entry(i)): i for i in range(len(geometry))}
        lacking = [i for i in range(len(edits)) if place(edits.entry(i)) not in self.rows]
        if lacking:
            raise ValueError(
                f"{edits.where(lacking[0])}: Expected its geometry in {geometry.folder}, got none. Encode "
                "both from one folder, with the same mirror."
            )

    def __len__(self) -> int:
        return len(self.edits)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.geometry[self.rows[place(self.edits.entry(index))]], **self.edits[index]}


def place(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(key) for key in PLACE)
