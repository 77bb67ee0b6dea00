"""The dataset folder of I-LDM: images with any of depth, normals, segmentation and line art.

The folder is one of `core.training.data`: `manifest.jsonl` and shards or loose files. Besides image, depth
and mask it may hold

    in shards  normals (n, H, W, 3) int8 or float, camera frame OpenCV, int8 = 127 times the unit normal,
               0 = unknown; segmentation (n, H, W) of integers, 0 = no mask, -1 = sky; line (n, H, W), 0 paper
               to 1 line, of any dtype.
    in files   "normals": a normal map in OpenGL's colors, black = unknown; "segmentation": a grayscale PNG,
               0 = no mask, and with 8 bits 255 = sky; "line": a grayscale image, white on black.

`spatialweave world --normals` writes it with exact maps, `spatialweave intrinsics build` from images with
estimators in ComfyUI. Depth may be in any unit, larger = farther; unknown depth on pixels segmented as sky is
infinite. A map is missing for a sample whose entry has none; depth or normals without a known pixel count as
missing, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.pictures import open_gray, open_picture
from ...core.training.data import SMOOTH, FolderDataset, fit_map
from ...core.training.data_files import SKY, check_sample_sizes
from ...core.training.settings import as_size
from ..config import MAPS
from ..maps.channels import encode_depth, encode_line, encode_normals, encode_segmentation, normals_from_image
from ..maps.segmentation import GRID
from ..vae import stack_maps

ROUNDING = 1e-3  # tolerance outside [0, 1], from resampling
INTEGER_NORMAL = 127  # int8 value of a component of 1
FORM = {"depth": 2, "normals": 3, "segmentation": 2, "line": 2}  # number of axes of each raw map


class IntrinsicSamples(torch.utils.data.Dataset):
    """The samples of a folder.

    maps (8, h, w) in [-1, 1] as `stack_maps` lays them out; present (4,) bool in the order of MAPS; with
    `image` also image (3, h, w) in [-1, 1] and its caption.

    `size` (height, width; one number for both) scales each sample to cover and center-crops it; without it
    samples keep their size. `grid` is the number of cells for the mask colors, see `encode_segments`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int | Sequence[int] | None = None,
        image: bool = False,
        grid: int = GRID,
    ):
        self.folder, self.size, self.image, self.grid = Path(folder), as_size(size), image, grid
        self.source = FolderDataset(self.folder, keys=("depth", "mask", *MAPS, *(["image"] if image else [])))

    def __len__(self) -> int:
        return len(self.source)

    def entry(self, index: int) -> Mapping[str, Any]:
        """The manifest's entry of a sample."""
        return self.source.entry(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raw = self.source[index]
        try:
            raw |= read_loose(self.folder, self.source.entry(index))
            check_sample_sizes(raw)
            maps, present = encode_sample(
                {name: self._fit(name, raw[name]) for name in (*MAPS, "mask") if name in raw},
                grid=self.grid,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.source.where(index)} cannot be used: {error}") from error
        sample = {"maps": maps, "present": present}
        if not self.image:
            return sample
        if "image" not in raw:
            raise ValueError(
                f"Expected an image in every sample, got none in {self.source.where(index)}. Add one, or "
                "take that line out."
            )
        image = self._fit("image", raw["image"]).permute(2, 0, 1).float() / 127.5 - 1
        if image.shape[1:] != maps.shape[1:]:
            sizes = f"an image {tuple(image.shape[1:])} with maps {tuple(maps.shape[1:])}"
            raise ValueError(
                f"Expected an image and maps of one height and width in sample {index} of {self.folder}, got "
                f"{sizes}. Set size to resize them to one."
            )
        return {**sample, "image": image, "caption": raw["caption"]}

    def _fit(self, name: str, value: Tensor) -> Tensor:
        if name == "line":
            value = value.float()  # an integer map has no gray between 0 and 1 for antialiasing
        return fit_map(value, self.size, smooth=name in SMOOTH) if self.size else value


def read_loose(folder: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """The maps of an entry whose files the trainer's reader does not know, in a shard's form."""
    if "shard" in entry:
        return {}
    return {name: read(folder / entry[name]) for name, read in READERS.items() if name in entry}


def read_normals(source: Any, *, name: Any = None) -> Tensor:
    """Normals (h, w, 3) of a normal map's file, bytes or Pillow image, 0 where black or fully transparent."""
    image = open_picture(source, name=name)
    normals = normals_from_image(image.rgb)[0].movedim(0, -1)
    return normals if image.alpha is None else normals * (image.alpha[0] > 0)[..., None]


READERS = {"normals": read_normals, "line": open_gray}


def encode_sample(raw: Mapping[str, Tensor], *, grid: int = GRID) -> tuple[Tensor, Tensor]:
    """Raw maps of one image to maps (8, h, w) and a flag per map, True where it is present.

    Raw maps: depth (h, w), mask (h, w), normals (h, w, 3), segmentation (h, w), line (h, w).
    """
    for name, axes in FORM.items():
        if name in raw and raw[name].ndim != axes:
            raise ValueError(
                f"Expected {name} of {axes} axes, got {tuple(raw[name].shape)}. Remove or add an axis."
            )
    maps: dict[str, Tensor] = {}
    if "depth" in raw and raw.get("mask", raw["depth"]).any():
        known = raw["mask"] if "mask" in raw else raw["depth"] > 0
        sky = raw["segmentation"] == SKY if "segmentation" in raw else torch.zeros_like(known)
        maps["depth"] = encode_depth(raw["depth"].float()[None, None], known[None, None], sky=sky[None, None])
    if "normals" in raw and raw["normals"].any():
        normals = raw["normals"]
        unit = normals.float() / (1 if normals.is_floating_point() else INTEGER_NORMAL)
        maps["normals"] = encode_normals(unit.movedim(-1, 0)[None])
    if "segmentation" in raw:
        maps["segmentation"] = encode_segmentation(
            raw["segmentation"].long().clamp(min=0)[None], grid=grid
        )[0]
    if "line" in raw:
        low, high = float(raw["line"].min()), float(raw["line"].max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise ValueError(
                f"Expected line values from 0 (paper) to 1 (line), got {low:.4g} to {high:.4g}. Divide by "
                "the full scale."
            )
        maps["line"] = encode_line(raw["line"].float()[None, None])
    return stack_maps(maps)[0], torch.tensor([name in maps for name in MAPS])
