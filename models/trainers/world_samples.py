"""Training samples of the tiny networks from the procedural world: in memory, each also mirrored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..core.training.data import FolderDataset, read_many
from ..core.training.sources import fingerprint_path
from ..core.weights.files import read_tensors, write_tensors
from ..modality_forcing.depth_code import depth_to_net
from ..tiny.codec import TinyCodec
from ..tiny.text import tokenize
from ..world.captions import mirror_caption
from ..world.scene import COLORS, SHAPES

# Keys of the tensors of a dataset folder that images and latents need.
IMAGE_KEYS, LATENT_KEYS = ("image", "segmentation"), ("image", "depth", "segmentation")
# Class labels of a cell of the image: its shape (surroundings, sky, then SHAPES), and its color (COLORS; -1
# without object).
CELL = 4  # pixels a side
CELL_CLASSES = (2 + len(SHAPES), len(COLORS))
READ = 1024  # images read at once


class InMemory(torch.utils.data.Dataset):
    """A dataset whose `__getitems__`, which a loader prefers, indexes a batch; a sample is a batch of one."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def mirror(x: Tensor, flags: Tensor) -> Tensor:
    """x (b, ..., w) flipped horizontally in the rows where `flags` (b,) is True."""
    return torch.where(flags.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


class WorldImages(InMemory):
    """Sample 2 i is image i, 2 i + 1 its mirror image.

    image (3, h, w) in [-1, 1]; cells as in `WorldLatents`.
    """

    def __init__(self, source: FolderDataset):
        images, cells = [], []
        for start in range(0, len(source), READ):
            rows = range(start, min(start + READ, len(source)))
            samples = read_many(source, rows)
            images += [sample["image"] for sample in samples]
            cells += [cells_of(source, i, sample) for i, sample in zip(rows, samples, strict=True)]
        self.images, self.cells = stack(images, "images", source), torch.stack(cells)

    def __len__(self) -> int:
        return 2 * len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        scenes, mirrored = rows // 2, rows % 2 == 1
        image = rearrange(self.images[scenes], "b h w c -> b c h w").float() / 127.5 - 1
        return {"image": mirror(image, mirrored), "cells": mirror(self.cells[scenes], mirrored)}


class WorldLatents(InMemory):
    """Training samples of Modality Forcing, mirrored as in `WorldImages`.

    latent (c, h / s, w / s) of the codec; depth_net (1, h, w), contracted unit-mean depth with sky at 2; mask
    (1, h, w), all True: no depth of this world is missing; tokens (k, n), a row for each caption of the
    scene; cells (2, h / 4, w / 4), shape and color classes as in CELL_CLASSES.
    """

    def __init__(self, source: FolderDataset, codec: TinyCodec, *, batch: int = 64, depth: bool = True):
        """Encode all images, or read them from a cache file in the dataset's folder.

        The file's name has a hash of codec and dataset. Without `depth`, samples have no depth_net and mask.
        """
        cache = Path(source.folder) / f"latents-{fingerprint(codec, Path(source.folder))}.safetensors"
        if cache.is_file():
            tensors = read_tensors(cache)
        else:
            tensors = encode_world(source, codec, batch)
            write_tensors(cache, tensors, {}, kind="latents of the world")
        self.tokens, self.cells = tensors["tokens"], tensors["cells"]
        self.depth = tensors["depth"] if depth else None
        self.latents = torch.stack((tensors["latent"], tensors["mirrored_latent"]), dim=1)

    def __len__(self) -> int:
        return 2 * len(self.tokens)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        scenes, side = rows // 2, rows % 2
        batch = {
            "latent": self.latents[scenes, side].float(),
            "tokens": self.tokens[scenes, side],
            "cells": mirror(self.cells[scenes], side == 1),
        }
        if self.depth is None:
            return batch
        depth = mirror(self.depth[scenes][:, None].float(), side == 1)
        return batch | {"depth_net": depth, "mask": torch.ones_like(depth, dtype=torch.bool)}


def encode_world(source: FolderDataset, codec: TinyCodec, batch: int) -> dict[str, Tensor]:
    """The tensors of `WorldLatents` for a whole dataset, scenes first."""
    names = ("latent", "mirrored_latent", "depth", "tokens", "cells")
    batches: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in tqdm(range(0, len(source), batch), desc="encoding", unit="batch", disable=None):
        rows = range(start, min(start + batch, len(source)))
        samples, entries = read_many(source, rows), [source.entry(i) for i in rows]
        image = stack([sample["image"] for sample in samples], "images", source)
        image = rearrange(image, "b h w c -> b c h w").float() / 127.5 - 1
        batches["latent"].append(encode(codec, image).half())
        batches["mirrored_latent"].append(encode(codec, image.flip(-1)).half())
        depth, known = (torch.stack([sample[key] for sample in samples]) for key in ("depth", "mask"))
        batches["depth"].append(depth_to_network(depth, known).half())
        batches["tokens"].append(stack([caption_tokens(entry) for entry in entries], "captions", source))
        cells = [cells_of(source, i, sample) for i, sample in zip(rows, samples, strict=True)]
        batches["cells"].append(torch.stack(cells))
    return {name: torch.cat(tensors) for name, tensors in batches.items()}


def fingerprint(codec: TinyCodec, folder: Path) -> str:
    """A hash of the codec's weights and of the dataset's files."""
    files = "".join(f"{name} {value}\n" for name, value in fingerprint_path(folder).items())
    digest = hashlib.sha256(files.encode())
    for name, value in codec.state_dict().items():
        digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode(codec: TinyCodec, image: Tensor) -> Tensor:
    return codec.encode(image.to(next(codec.parameters()).device)).cpu()


def depth_to_network(depth: Tensor, known: Tensor) -> Tensor:
    """Network depth (b, h, w) of metric depth (b, h, w); unknown pixels are sky, infinitely far."""
    return depth_to_net(depth[:, None], known[:, None], sky=~known[:, None])[:, 0]


def stack(values: Sequence[Tensor], what: str, source: FolderDataset) -> Tensor:
    """Samples stacked; ValueError names the folder if shapes differ, as the tiny networks take one."""
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise ValueError(
            f"Expected {what} of one shape in {source.folder}, got {shapes[0]} and {shapes[-1]}. "
            "Resize them to one."
        )
    return torch.stack(list(values))


def cells_of(source: FolderDataset, index: int, sample: Mapping[str, Tensor]) -> Tensor:
    """`label_cells` of a dataset's sample; ValueError names the line if "objects" are not the world's."""
    objects = source.entry(index).get("objects")
    try:
        return label_cells(sample["segmentation"], objects)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{source.where(index)} cannot be used: Expected "objects" as the world names them, one for each '
            f"label of the segmentation, got {objects!r}. Write the folder with: spatialweave world"
        ) from error


def label_cells(segmentation: Tensor, objects: Sequence[str]) -> Tensor:
    """Class labels (2, h / 4, w / 4) int8 of a segmentation (h, w), sampled near the center of each cell.

    Labels of the segmentation: -1 sky, 0 surroundings, i + 1 object i.
    """
    label = (
        segmentation[CELL // 2 :: CELL, CELL // 2 :: CELL].long() + 1
    )  # 0 sky, 1 surroundings, 2 + i object i
    names = [name.split() for name in objects]
    colors, shapes = zip(*((list(COLORS).index(c), SHAPES.index(s)) for c, s in names), strict=True)
    shape = torch.tensor([1, 0, *(2 + s for s in shapes)])[label]
    color = torch.tensor([-1, -1, *colors])[label]
    return torch.stack((shape, color)).to(torch.int8)


def caption_tokens(entry: Mapping[str, Any]) -> Tensor:
    """Tokens (2, k, n): every caption of a scene, and its mirrored caption."""
    captions: Sequence[str] = entry.get("captions") or [entry["caption"]]
    return torch.stack([tokenize(list(captions)), tokenize([mirror_caption(text) for text in captions])])
