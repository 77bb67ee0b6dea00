"""Samples of the procedural world as the tiny networks take them: held in memory, each also in a mirror."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.training.data import FolderDataset, read_many
from ..core.training.sources import fingerprint_path
from ..core.weights.files import read_tensors, write_tensors
from ..modality_forcing.depth_code import depth_to_net
from ..tiny.codec import TinyCodec
from ..tiny.text import PAD, tokenize
from ..world.captions import mirror_caption
from ..world.scene import COLORS, SHAPES

# What a spot of a picture shows, as numbers: its shape (surroundings, sky, then SHAPES) and its colour (COLORS; of objects only).
CELL = 4  # pixels to a side
CELL_CLASSES = (2 + len(SHAPES), len(COLORS))
READ = 1024  # pictures read at once


class InMemory(torch.utils.data.Dataset):
    """Heirs cut whole batches out of their tensors by `__getitems__`, for which a loader asks first; a sample is a batch of one."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def mirror(x: Tensor, which: Tensor) -> Tensor:
    """x (b, ...) with left and right exchanged in the rows that `which` (b,) names."""
    return torch.where(which.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


class WorldPictures(InMemory):
    """For the codec: sample 2 i is picture i, 2 i + 1 the same in a mirror. image 3 H W in [-1, 1]; cells as in `WorldLatents`."""

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
        image = self.images[scenes].permute(0, 3, 1, 2).float() / 127.5 - 1
        return {"image": mirror(image, mirrored), "cells": mirror(self.cells[scenes], mirrored)}


class WorldLatents(InMemory):
    """What Modality Forcing trains on, mirrored as above.

    latent c h w of the codec; depth_net 1 H W, contracted unit-mean depth with sky at 2; mask 1 H W, all True: nothing of
    this world is missing; tokens k n, one row of word numbers for each caption of the scene; cells 2 H/4 W/4, shape and colour
    numbers as CELL_CLASSES counts them.
    """

    def __init__(self, source: FolderDataset, codec: TinyCodec, *, batch: int = 64, depth: bool = True):
        """Encoding all pictures takes minutes, so the result stays in the dataset's folder, named after the codec and the dataset's files.
        Without `depth` samples have neither depth_net nor mask."""
        cache = Path(source.folder) / f"latents-{fingerprint(codec, Path(source.folder))}.safetensors"
        if cache.is_file():
            tensors = read_tensors(cache)
        else:
            tensors = encode_world(source, codec, batch)
            write_tensors(cache, tensors, {}, kind="latents of the world")
        self.tokens, self.cells, self.depth = tensors["tokens"], tensors["cells"], tensors["depth"] if depth else None
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


class PicturesAndMaps(InMemory):
    """For a latent diffusion model: samples of `WorldLatents`, and among them latents of intrinsic maps, as pictures of another kind.

    SD learnt from pictures among which were depth maps, normal maps and line drawings; the world renders none. `maps` is a folder that
    `spatialweave intrinsics encode` wrote, `share` their part of all samples. latent, tokens and cells as above; maps is True for a map.
    A map's words stand behind a padding word, so that no prompt asks for maps; its cells are not known (-1).
    """

    def __init__(self, pictures: WorldLatents, maps: FolderDataset, share: float):
        if not 0 < share < 1:
            raise ValueError(f"A share {share} of maps arrived; give one above 0 and below 1, or no maps at all.")
        self.pictures, self.count = pictures, round(len(pictures) * share / (1 - share))
        self.latents = stack([sample["intrinsic_latent"] for sample in read_many(maps, range(len(maps)))], "intrinsic_latent", maps)
        self.tokens = words_of_maps(tokenize([maps.entry(i)["caption"] for i in range(len(maps))]))
        like = pictures[0]
        if self.latents.shape[1:] != like["latent"].shape:
            shapes = f"{tuple(self.latents.shape[1:])} and of pictures {tuple(like['latent'].shape)}"
            raise ValueError(f"Latents of maps {shapes} arrived; encode the maps for this autoencoder's base, at the pictures' size.")
        self.unknown = torch.full_like(like["cells"], -1)

    def __len__(self) -> int:
        return len(self.pictures) + self.count

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        numbers = torch.as_tensor(indices)
        maps = numbers >= len(self.pictures)
        rows = (numbers - len(self.pictures)) % len(self.latents)
        of_maps = {"latent": self.latents[rows].float(), "tokens": self.tokens[rows][:, None], "cells": self.unknown}
        of_pictures = self.pictures.__getitems__(torch.where(maps, 0, numbers).tolist())
        chosen = {name: maps.view(-1, *[1] * (of_pictures[name].ndim - 1)) for name in of_maps}
        return {name: torch.where(chosen[name], value, of_pictures[name]) for name, value in of_maps.items()} | {"maps": maps}


def words_of_maps(words: Tensor) -> Tensor:
    """Word numbers b n with a padding word in front, by which a tiny base knows that maps are meant: no prompt begins so."""
    return torch.cat([torch.full_like(words[:, :1], PAD), words[:, :-1]], dim=1)


class PicturesWithMaps(InMemory):
    """For a latent diffusion model: pictures, each with the intrinsic maps of the same scene, of a folder that
    `spatialweave intrinsics encode` wrote. latent and intrinsic_latent c h w; tokens and maps_tokens n, see `words_of_maps`.
    """

    def __init__(self, pairs: FolderDataset):
        samples = read_many(pairs, range(len(pairs)))
        self.latents, self.maps = (stack([sample[key] for sample in samples], key, pairs) for key in ("latent", "intrinsic_latent"))
        self.tokens = tokenize([pairs.entry(i)["caption"] for i in range(len(pairs))])

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        words = self.tokens[rows]
        latents = {"latent": self.latents[rows].float(), "intrinsic_latent": self.maps[rows].float()}
        return latents | {"tokens": words, "maps_tokens": words_of_maps(words)}


def encode_world(source: FolderDataset, codec: TinyCodec, batch: int) -> dict[str, Tensor]:
    """What `WorldLatents` holds of a whole dataset, the scenes as first axis."""
    parts: dict[str, list[Tensor]] = {"latent": [], "mirrored_latent": [], "depth": [], "tokens": [], "cells": []}
    for start in tqdm(range(0, len(source), batch), desc="encoding", unit="batch", disable=None):
        rows = range(start, min(start + batch, len(source)))
        samples, entries = read_many(source, rows), [source.entry(i) for i in rows]
        image = stack([sample["image"] for sample in samples], "images", source).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts["latent"].append(encode(codec, image).half())
        parts["mirrored_latent"].append(encode(codec, image.flip(-1)).half())
        parts["depth"].append(code_depth(torch.stack([s["depth"] for s in samples]), torch.stack([s["mask"] for s in samples])).half())
        parts["tokens"].append(stack([caption_tokens(entry) for entry in entries], "captions", source))
        parts["cells"].append(torch.stack([cells_of(source, i, sample) for i, sample in zip(rows, samples, strict=True)]))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def fingerprint(codec: TinyCodec, folder: Path) -> str:
    """A number of the codec's weights and of a dataset's files, and of nothing else."""
    digest = hashlib.sha256("".join(f"{name} {value}\n" for name, value in fingerprint_path(folder).items()).encode())
    for name, value in codec.state_dict().items():
        digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode(codec: TinyCodec, image: Tensor) -> Tensor:
    return codec.encode(image.to(next(codec.parameters()).device)).cpu()


def code_depth(depth: Tensor, known: Tensor) -> Tensor:
    """Network depth b H W of metric depth b H W; what is not known in this world is sky: not missing, but infinitely far."""
    return depth_to_net(depth[:, None], known[:, None], sky=~known[:, None])[:, 0]


def stack(values: Sequence[Tensor], what: str, source: FolderDataset) -> Tensor:
    """Samples of one shape as a tensor; ValueError names the folder where they differ: the tiny networks take one size."""
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise ValueError(f"Expected {what} of one shape in {source.folder}, got {shapes[0]} and {shapes[-1]}. Bring them to one.")
    return torch.stack(list(values))


def cells_of(source: FolderDataset, index: int, sample: Mapping[str, Tensor]) -> Tensor:
    """`count_cells` of a dataset's sample; ValueError names its line where the "objects" are none of the world."""
    objects = source.entry(index).get("objects")
    try:
        return count_cells(sample["segmentation"], objects)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        said = f'Expected "objects" as the world names them, one for each number of the segmentation, got {objects!r}'
        raise ValueError(f"{source.where(index)} cannot be used: {said}. Make the folder with: spatialweave world") from error


def count_cells(segmentation: Tensor, objects: Sequence[str]) -> Tensor:
    """Class numbers 2 H/4 W/4 int8 of a segmentation H W (-1 sky, 0 surroundings, i + 1 object i), read near each cell's middle."""
    number = segmentation[CELL // 2 :: CELL, CELL // 2 :: CELL].long() + 1  # 0 sky, 1 surroundings, 2 + i object i
    colors, shapes = zip(*((list(COLORS).index(c), SHAPES.index(s)) for c, s in map(str.split, objects)), strict=True)
    shape = torch.tensor([1, 0, *(2 + s for s in shapes)])[number]
    color = torch.tensor([-1, -1, *colors])[number]
    return torch.stack((shape, color)).to(torch.int8)


def caption_tokens(entry: Mapping[str, Any]) -> Tensor:
    """Word numbers 2 k n: every caption of a scene, as it is and as the mirror needs it."""
    captions: Sequence[str] = entry.get("captions") or [entry["caption"]]
    return torch.stack([tokenize(list(captions)), tokenize([mirror_caption(text) for text in captions])])
