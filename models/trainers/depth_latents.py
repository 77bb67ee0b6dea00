"""Latents, depth and prompt tensors of a dataset folder, encoded before a depth adapter trains.

    FOLDER/shard-00000.safetensors       latent (n, c, h, w) float16, posterior means scaled to unit standard
                                         deviation; depth (n, H, W) float16 in units of its median, 0 where it
                                         is not known; the base's prompt tensors, each (n, k, ...), a row per
                                         caption; with `references`, reference_0 and so on, latents as latent
    FOLDER/empty_context.safetensors     the same prompt tensors of "", without the first two axes
    FOLDER/manifest.jsonl, dataset.json, sources.jsonl      as core/training/shard_writer.py has them

A run that was stopped goes on with the shards that are missing; samples that changed are encoded again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from safetensors.torch import save
from torch import Tensor

from ..core.export.files import write_file
from ..core.pictures import open_rgb
from ..core.text_files import show_path
from ..core.training.data import MANIFEST, FolderDataset, fit_map
from ..core.training.data_files import FILES, check_name
from ..core.training.settings import Size
from ..core.training.shard_sources import Source, stamp_files
from ..core.training.shard_writer import Summary, write_folder
from ..core.training.shards import ShardFolder

log = logging.getLogger("spatialweave.dataset")
FORMAT, VERSION = "spatialweave-depth-latents", 1
EMPTY = "empty_context.safetensors"
KEYS = ("image", "depth")
REFERENCES = "references"  # of a line: names of image files that the edited image goes back to


@dataclass(frozen=True)
class DepthLatentsRequest:
    """The `data` part of a recipe."""

    folder: str  # of the encoded shards
    source: str = ""  # dataset folder with images, depth and captions; "": `folder` is encoded already
    size: Size | None = None  # pixels; None keeps the images' own
    captions: int = 1  # per image, of the manifest's "captions"
    references: int = 0  # per image, of the manifest's "references"; OmniGen2 reads them
    shard_size: int = 256
    batch: int = 8  # images encoded at once

    def __post_init__(self) -> None:
        if not self.folder or min(self.captions, self.shard_size, self.batch) < 1 or self.references < 0:
            raise ValueError(
                "Expected a folder, captions, shard_size and batch of at least 1, and references of at "
                f"least 0, in the recipe's data, got {self}. Correct the recipe."
            )


class FrozenEncoders(Protocol):
    """A base's frozen encoders."""

    name: str
    files: Sequence[tuple[str, Path]]  # that decide its numbers

    def encode_images(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] to latents (b, c, h, w) of unit standard deviation."""

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """The base's prompt tensors, a row per prompt."""


def encode_depth_latents(
    request: DepthLatentsRequest, make_encoder: Callable[[torch.device], FrozenEncoders],
    files: Sequence[tuple[str, Path]], name: str,
) -> Summary:  # fmt: skip
    """Write the shards that the folder lacks. ValueError if it was begun with other settings."""
    source, output = Path(request.source), Path(request.folder)
    samples = FolderDataset(source, size=request.size, keys=KEYS, needs=KEYS)
    facts = {
        "format": FORMAT, "version": VERSION, "captions": request.captions,
        "size": list(samples.size) if samples.size else None,
        "files": stamp_files(ShardFolder(output), files),
        "about": {"source": show_path(source.resolve().name), "base": name},
        **({REFERENCES: request.references} if request.references else {}),
    }  # fmt: skip
    encoders: list[FrozenEncoders] = []  # made for the first shard: a finished folder needs none

    def write(shard: str, members: Sequence[Source], state) -> list[str]:
        if not encoders:
            encoders.append(make_encoder(state.device))
        (encoder,) = encoders
        indices = [member.entry["index"] for member in members]
        readable, left_out = read_readable(samples, indices, request.references)
        if readable:
            starts = range(0, len(readable), request.batch)
            batches = [encode_batch(encoder, readable[i : i + request.batch], request) for i in starts]
            tensors = {key: torch.cat([each[key] for each in batches]).contiguous() for key in batches[0]}
            write_file(output / f"{shard}.safetensors", save(tensors))
        if state.is_main_process and not (output / EMPTY).is_file():
            empty = encoder.encode_prompts([""])
            write_file(output / EMPTY, save({key: to_half(value[0]) for key, value in empty.items()}))
        return left_out

    return write_folder(
        output, facts, sources=list_sources(samples), shard_size=request.shard_size, write=write,
        what="encode", gpu=True,
    )  # fmt: skip


@torch.no_grad()
def encode_batch(
    encoder: FrozenEncoders, samples: Sequence[Mapping[str, Any]], request: DepthLatentsRequest
) -> dict[str, Tensor]:
    """All tensors of a shard for these samples, on the CPU."""
    images = torch.stack([rearrange(sample["image"], "h w c -> c h w") for sample in samples])
    prompts = [caption for sample in samples for caption in choose_captions(sample, request.captions)]
    tensors = {
        key: to_half(rearrange(value, "(b k) ... -> b k ...", k=request.captions))
        for key, value in encoder.encode_prompts(prompts).items()
    }
    depth = torch.stack([by_median(sample["depth"], sample["mask"]) for sample in samples])
    latent = encoder.encode_images(images.float() / 127.5 - 1)
    for i in range(request.references):
        images = torch.stack([rearrange(sample[REFERENCES][i], "h w c -> c h w") for sample in samples])
        tensors[name_reference(i)] = to_half(encoder.encode_images(images.float() / 127.5 - 1))
    return {"latent": to_half(latent), "depth": depth.half(), **tensors}


def name_reference(index: int) -> str:
    """The tensor of a shard that holds the latents of one reference of each sample."""
    return f"reference_{index}"


def choose_captions(sample: Mapping[str, Any], count: int) -> list[str]:
    """`count` captions of a sample; fewer are repeated."""
    captions = sample["captions"] or [sample["caption"]]
    return [captions[i % len(captions)] for i in range(count)]


def by_median(depth: Tensor, known: Tensor) -> Tensor:
    """Depth (h, w) in units of the median of its known pixels, which half precision holds; 0 elsewhere."""
    if not bool(known.any()):
        return torch.zeros_like(depth)
    return torch.where(known, depth / depth[known].median(), 0.0).clamp(max=torch.finfo(torch.float16).max)


def to_half(x: Tensor) -> Tensor:
    """float16 on the CPU, whole numbers as they are; ValueError for values out of its range."""
    if not x.is_floating_point():
        return x.to("cpu", torch.uint8).contiguous()
    if not bool((x.abs() < torch.finfo(torch.float16).max).all()):
        raise ValueError(
            "Expected outputs of the base's encoders in the range of float16, got larger or infinite values. "
            "Set precision of the recipe's model to float32."
        )
    return x.to("cpu", torch.float16).contiguous()


def list_sources(samples: FolderDataset) -> list[Source]:
    """The samples with their source files; the samples of one shard share its file."""
    sources: dict[str, Source] = {}
    for index in range(len(samples)):
        entry = samples.entry(index)
        in_shard = "shard" in entry
        files = {entry["shard"]} if in_shard else {entry[k] for k in FILES if isinstance(entry.get(k), str)}
        listed = entry.get(REFERENCES)
        files |= {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
        name = f"{entry['shard']}:{entry['row']}" if in_shard else str(entry.get("image", index))
        while name in sources:  # a manifest may list a sample twice, with two captions
            name += "+"
        sources[name] = Source(
            name,
            {file: samples.folder / file for file in sorted(files)},
            text=json.dumps(entry, sort_keys=True),
            entry={
                "index": index,
                "caption": str(entry.get("caption", "")),
                "captions": list(entry.get("captions") or [str(entry.get("caption", ""))]),
            },
            words=f"line {samples.lines[index]} of {MANIFEST}",
        )
    return list(sources.values())


def read_references(samples: FolderDataset, index: int, count: int) -> list[Tensor]:
    """The first `count` references of a sample, uint8 (h, w, 3), scaled to cover the dataset's size."""
    names, where = samples.entry(index).get(REFERENCES), samples.where(index)
    if not isinstance(names, list) or len(names) < count:
        raise ValueError(
            f"{where}: Expected {count} image files as {REFERENCES}, got "
            f"{len(names) if isinstance(names, list) else 'none'}. Name them in the line."
        )
    images = []
    for name in names[:count]:
        check_name(name, REFERENCES, where)
        image, _ = open_rgb(samples.folder / name)
        images.append(fit_map(image, samples.size, smooth=True) if samples.size else image)
    return images


def read_readable(
    samples: FolderDataset, indices: Sequence[int], references: int = 0
) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable samples, and per sample an error or ""; ValueError for images of several sizes."""
    readable: list[dict[str, Any]] = []
    left_out = []
    for index in indices:
        try:
            sample = samples[index]
            if not bool(sample["mask"].any()):
                raise ValueError(f"{samples.where(index)}: Expected a known depth pixel, got none.")
            if sample["depth"].shape != sample["image"].shape[:2]:
                raise ValueError(
                    f"{samples.where(index)}: Expected depth of the image's size, got "
                    f"{tuple(sample['depth'].shape)} and {tuple(sample['image'].shape[:2])}. Set data.size."
                )
            images = read_references(samples, index, references) if references else []
        except (ValueError, OSError) as error:
            log.warning("%s", error)
            left_out.append(str(error))
            continue
        sizes = [tuple(image.shape[:2]) for image in (sample["image"], *images)]
        if readable and sizes != readable[0]["sizes"]:
            raise ValueError(
                f"Expected images of one size in {samples.folder}, got {sizes} (h, w) in sample {index} and "
                f"{readable[0]['sizes']} before. Set data.size."
            )
        captions = samples.entry(index).get("captions")
        readable.append({**sample, "captions": captions, "sizes": sizes, REFERENCES: images})
        left_out.append("")
    return readable, left_out
