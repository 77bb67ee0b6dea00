"""Training data on disk: a folder with one manifest line per sample, and the order in which a run reads it.

A dataset folder holds `manifest.jsonl`, one JSON object per sample, and the files the lines name, relative to
the folder. A line is either a row of a shard or a set of loose files; one manifest may mix both. Every other
key is metadata and stays in `entry(index)`.

    {"shard": "shard-00000.safetensors", "row": 17, "caption": "a red ball", ...}
        Each tensor of a shard has the samples as its first axis. `image` is uint8 (n, H, W, 3); `depth` is
        float16 or float32 (n, H, W) metres along z, where inf, nan and values <= 0 mean "not known"; `mask`
        (optional) is bool or uint8 (n, H, W), 0 = do not use. Any further tensor, such as a precomputed
        `latent` (n, c, h, w) or `context` (n, tokens, c), is handed on under its name.
    {"image": "images/0.png", "depth": "depth/0.png", "depth_scale": 0.001, "mask": "mask/0.png", "caption":
    "a red ball", ...}
        Names are relative to the folder. `image`: any image Pillow opens, turned as its EXIF says; 16 bits
        are scaled to 8. `depth`: a 16-bit gray PNG, metres = value * depth_scale, 0 = not known; or an .npy
        or .npz file (array `depth`, or the only one), metres = value * depth_scale, too, where the line has
        one. What a depth file states itself (a PNG's text or the JSON beside it; depth_scale, depth_offset,
        mask, units and direction in an NPZ) counts, and where it contradicts the line the sample is refused.
        `mask` (optional): an image of the depth's size, black = do not use. `segmentation` (optional): a gray
        PNG of numbers, in one of 8 bits 255 = sky.

A sample is a dict: image uint8 H W 3; depth float32 H W with 0 where it is not known; mask bool H W, True =
known; segmentation (-1 = sky); caption str, "" where the line has none; and whatever further tensors its
shard holds. Image and depth may differ in size, but not in proportion, beyond a pixel of rounding. Readers
open files late and drop the handles when copied: safe under spawn.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from ..pictures import open_mask, open_rgb
from ..text_files import show_path
from ..weights.files import read_header
from ..weights.mapped import map_tensors
from .data_files import (
    MANIFEST,
    SCALE,
    check_forms,
    check_sample_sizes,
    read_manifest,
    read_sample_depth,
    read_segmentation,
)
from .settings import as_size

log = logging.getLogger("spatialweave.dataset")

SMOOTH = ("image", "line")  # maps that are resized smoothly; pixels of the others must not be interpolated
MAPS = (*SMOOTH, "depth", "mask", "segmentation", "normals")  # keys with pixels
READERS = min(8, os.cpu_count() or 1)  # threads of one reading


class FolderDataset(torch.utils.data.Dataset):
    """The samples of one dataset folder.

    `size` (height, width; one number for both) scales to cover and crops the middle.

    `keys` excludes other tensors; a sample without all of `needs`, tensors or entries of the line, is
    refused.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int | Sequence[int] | None = None,
        keys: Sequence[str] | None = None,
        needs: Sequence[str] = (),
    ):
        self.folder, self.size, self.keys = Path(folder), as_size(size), tuple(keys) if keys else None
        self.needs = tuple(needs)
        self.entries, self.lines = read_manifest(self.folder)
        self._shards: dict[str, dict[str, Tensor]] = {}  # mapped into memory
        self._logged: set[str] = set()

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}

    def entry(self, index: int) -> Mapping[str, Any]:
        """The line of the manifest."""
        return self.entries[index]

    def needing(self, *needs: str) -> FolderDataset:
        """The same dataset, in which a sample without these tensors or entries is refused."""
        other = copy.copy(self)
        other.needs = needs
        return other

    def where(self, index: int) -> str:
        """How a message names a sample."""
        entry = self.entries[index]
        row = f", row {entry['row']} of {show_path(entry['shard'])}" if "shard" in entry else ""
        return f"Sample {index} (line {self.lines[index]} of {show_path(self.folder / MANIFEST)}{row})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.entries[index]
        try:
            raw = self._read_row(entry) if "shard" in entry else self._read_files(entry)
            check_sample_sizes(raw)
            lacks = [key for key in self.needs if key not in raw and key not in entry]
            if lacks:
                raise ValueError(
                    f"Expected {', '.join(self.needs)}, got none of {', '.join(lacks)}. Name them in the "
                    "line, or the shard"
                )
        except (OSError, KeyError, IndexError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"{self.where(index)}: {str(error).removesuffix('.')}."
            ) from error
        if "depth" in raw:
            raw |= mask_depth(raw["depth"], raw.get("mask"))
        if self.size:
            raw = fit(raw, self.size, index)
        return {**raw, "caption": entry["caption"]}

    def _wants(self, key: str) -> bool:
        return self.keys is None or key in self.keys

    def _read_row(self, entry: Mapping[str, Any]) -> dict[str, Tensor]:
        name, row = entry["shard"], entry["row"]
        if name not in self._shards:
            path = self.folder / name
            # the header's message names the file and what is wrong with it
            self._shards[name] = dict(map_tensors(path, read_header(path)))
        shard, found = self._shards[name], {}
        for key in filter(self._wants, shard):
            part = shard[key]
            count = len(part) if part.ndim else 0
            if row >= count:
                raise ValueError(
                    f"Expected a row below {count} of {key} in {name}, got {row}. Count the rows from 0"
                )
            found[key] = part[row].clone()
        check_forms(found, name)
        return found

    def _read_files(self, entry: Mapping[str, Any]) -> dict[str, Tensor]:
        raw = {}
        if "image" in entry and self._wants("image"):
            raw["image"], notes = open_rgb(self.folder / entry["image"])
            self._say(notes, entry["image"])
        if "depth" in entry and self._wants("depth"):
            raw["depth"] = read_sample_depth(self.folder / entry["depth"], entry.get(SCALE))
        if "mask" in entry and self._wants("depth"):
            raw["mask"] = open_mask(self.folder / entry["mask"])
        if "segmentation" in entry and self._wants("segmentation"):
            raw["segmentation"] = read_segmentation(self.folder / entry["segmentation"])
        return raw

    def _say(self, notes: Sequence[str], name: str) -> None:
        """Log each kind of note about images once per dataset."""
        for note in notes:
            kind = re.sub(r"\d+", "", note)
            if kind not in self._logged:
                self._logged.add(kind)
                log.warning(
                    "%s: %s Further notes of this kind are not logged.", show_path(self.folder / name), note
                )


def mask_depth(depth: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Depth with 0 where it is unknown, and the mask of where it is known."""
    depth = depth.float()
    known = torch.isfinite(depth) & (depth > 0)
    if mask is not None:
        known &= mask.bool()
    return {"depth": torch.where(known, depth, 0.0), "mask": known}


def fit(sample: dict[str, Tensor], size: tuple[int, int], index: int) -> dict[str, Tensor]:
    """Scale every map of a sample to cover `size` and crop the middle: images and lines smoothly, all else by
    nearest neighbor.
    """
    foreign = sorted(set(sample) - set(MAPS))
    if foreign:
        raise ValueError(
            f"Expected maps that can be resized, got {', '.join(foreign)} in sample {index}. Leave size "
            "out, or those with keys."
        )
    return {key: fit_map(value, size, smooth=key in SMOOTH) for key, value in sample.items()}


def fit_map(value: Tensor, size: tuple[int, int], *, smooth: bool) -> Tensor:
    height, width = value.shape[:2]
    if (height, width) == size:
        return value
    scale = max(size[0] / height, size[1] / width)
    covering = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    planes = value[..., None] if value.ndim == 2 else value
    planes = planes.permute(2, 0, 1)[None].float()
    how = {"mode": "bilinear", "antialias": True} if smooth else {"mode": "nearest-exact"}
    planes = F.interpolate(planes, covering, **how)[0].permute(1, 2, 0)
    planes = planes.round().clamp(0, 255) if value.dtype == torch.uint8 else planes
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return planes[top : top + size[0], left : left + size[1]].to(value.dtype).reshape(*size, *value.shape[2:])


def collate(samples: list[dict[str, Any]] | Mapping[str, Any]) -> Mapping[str, Any]:
    """Samples to a batch: tensors stacked, strings listed. Samples of different sizes or keys are refused.

    If a dataset's `__getitems__` returned a batch, it is used: a dataset in memory slices it at once.
    """
    if isinstance(samples, Mapping):
        return samples
    first = samples[0]
    for sample in samples:
        if sample.keys() != first.keys() or describe(sample) != describe(first):
            raise ValueError(
                f"Expected samples of one size in a batch, got {describe(first)} and {describe(sample)}. "
                "Set data.size to resize all samples."
            )
    columns = {key: [sample[key] for sample in samples] for key in first}
    return {
        key: torch.stack(values) if isinstance(values[0], Tensor) else values
        for key, values in columns.items()
    }


def read_many(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """These samples, by several threads: decoding images and copying tensors release Python's lock."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(dataset.__getitem__, indices))


def pick(dataset: Sequence[Any], count: int) -> list[Any]:
    """At most `count` samples, spread evenly over the dataset, as a subset to measure on."""
    count = min(count, len(dataset))
    return [dataset[i * len(dataset) // count] for i in range(count)]


def describe(sample: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{key} {tuple(value.shape)}" for key, value in sample.items() if isinstance(value, Tensor))
        or "no tensors"
    )


class OrderedBatches:
    """Which samples each slice takes: endless epochs of a shuffle that is a function of (seed, epoch).

    Step s takes the `batch` samples from position s * batch on, cut into `slices` equal parts; process p of n
    takes parts p, p + n, ...
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int,
        *,
        first_step: int = 0,
        slices: int = 1,
        processes: int = 1,
        process: int = 0,
    ):
        if count < 1:
            raise ValueError("Expected at least one sample to train on, got an empty dataset. Add samples.")
        self.count, self.batch, self.seed, self.first_step = count, batch, seed, first_step
        self.slices, self.processes, self.process = slices, processes, process
        self._shuffled: tuple[int, Tensor] = (-1, torch.empty(0))

    def __iter__(self) -> Iterator[list[int]]:
        step, part = self.first_step, self.batch // self.slices
        while True:
            for number in range(self.process, self.slices, self.processes):
                start = step * self.batch + number * part
                yield [self.sample(position) for position in range(start, start + part)]
            step += 1

    def sample(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        if self._shuffled[0] != epoch:
            order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._shuffled = epoch, torch.randperm(self.count, generator=order)
        return int(self._shuffled[1][offset])
