"""Latents and prompt embeddings of a dataset folder, computed once before the training of an intrinsic LoRA.

`spatialweave intrinsics encode` writes

    OUTPUT/shard-00000.safetensors       latent, intrinsic_latent (n, c, h, w) float16, posterior means scaled
                                         to unit standard deviation; context (n, tokens, c) float16; for SDXL
                                         pooled (n, c) float16; for PixArt context_mask (n, tokens) uint8,
                                         1 = a token
    OUTPUT/empty_context.safetensors     the same tensors for the prompt "", without the first axis
    OUTPUT/manifest.jsonl                {"shard", "row", "index" in the source, "caption"}
    OUTPUT/dataset.json, sources.jsonl   the settings, and the source files by content hash

A sample that cannot be read is skipped and reported. Samples that changed since the last run are encoded
again; with another base or intrinsic VAE than before nothing is written.

The text encoders and the image autoencoder are the base model's own, run by diffusers; the intrinsic VAE is
ours, and so is the text encoder of a tiny base (`training.base`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ...core.export.files import write_file
from ...core.text_files import show_path
from ...core.training.data import MANIFEST, READERS
from ...core.training.data_files import FILES
from ...core.training.shard_sources import Source, stamp_files
from ...core.training.shard_writer import Summary, write_folder
from ...core.training.shards import ShardFolder
from ...core.weights.files import fill_module
from ..backbones import find_family, find_variant, load_parts, make_autoencoder
from ..maps.segmentation import GRID
from ..tiny import TEXT_FILE
from ..training.lora import EMPTY_PROMPT
from ..weights import load_intrinsic_vae, to_diffusers_names
from .dataset import IntrinsicSamples

log = logging.getLogger("spatialweave.dataset")

FORMAT, VERSION = "spatialweave-intrinsic-latents", 2
OTHER_WEIGHTS = (".bin", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx")  # file types that are not loaded
LARGEST = torch.finfo(torch.float16).max


class Encoder:
    """The frozen encoders of a base model, and an intrinsic VAE, on one device."""

    def __init__(self, base: Path, vae: Path, device: torch.device, dtype: torch.dtype):
        self.family, self.device = find_family(base), device
        intrinsic = load_intrinsic_vae(vae)
        self.intrinsic_scale = intrinsic.latent_scale
        self.intrinsic = fill_module(
            make_autoencoder(intrinsic.config, "meta"), to_diffusers_names(intrinsic.state), what=str(vae),
            device=device
        ).train(False)  # fmt: skip
        self.prompts, image = load_parts(base, dtype)
        self.prompts.to(device)
        self.image = image.requires_grad_(False).to(device)

    @torch.no_grad()
    def encode(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """All tensors of a shard for these samples, on the CPU."""
        images, maps = (
            torch.stack([sample[key] for sample in samples]).to(self.device) for key in ("image", "maps")
        )
        config = self.image.config
        latent = (
            self.image.encode(images).latent_dist.mode() - (config.shift_factor or 0)
        ) * config.scaling_factor
        coded = self.intrinsic.encode(maps).latent_dist.mode() * self.intrinsic_scale
        return {
            "latent": as_half(latent),
            "intrinsic_latent": as_half(coded),
            **self.encode_prompts([s["caption"] for s in samples]),
        }

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """The prompt tensors by the names in `CONDITIONS`, one row per prompt."""
        tensors = self.prompts.encode(prompts)
        return {
            name: value.to("cpu", torch.uint8) if name == "context_mask" else as_half(value)
            for name, value in tensors.items()
        }


def as_half(x: Tensor) -> Tensor:
    """float16 on the CPU; ValueError for values out of its range."""
    if not bool((x.abs() < LARGEST).all()):
        raise ValueError(
            "Expected outputs of the encoders in the range of float16, got larger or infinite values. Use "
            "--precision float32."
        )
    return x.to("cpu", torch.float16)


def encode_dataset(
    source: str | Path, output: str | Path, *, base: str | Path, vae: str | Path,
    size: Sequence[int] | None = None,
    batch: int = 4, shard_size: int = 256, precision: str = "float32", grid: int = GRID,
) -> Summary:  # fmt: skip
    """Encode a dataset folder for one base model and one intrinsic VAE.

    `size` is (height, width); `precision` is the text encoders' dtype; `grid` is the number of
    cells for the mask colors, see `encode_segments`.
    """
    source, output, base, vae = (Path(path) for path in (source, output, base, vae))
    samples = IntrinsicSamples(source, size=size, image=True, grid=grid)
    if not vae.is_file():
        raise ValueError(
            f"Expected a file as --vae, got {vae}. Name the intrinsic_vae.safetensors that `spatialweave "
            "train` wrote."
        )
    if batch < 1:
        raise ValueError(f"Expected a batch of at least 1 image, got {batch}. Give --batch another number.")
    family = find_family(base)
    files = [("intrinsic VAE", vae), *list_base_files(base)]
    facts = {
        "format": FORMAT, "version": VERSION, "family": family,
        "size": list(samples.size) if samples.size else None,
        "precision": precision, "places": grid, "files": stamp_files(ShardFolder(output), files),
        "about": {
            "source": show_path(source.resolve().name), "base": show_path(base.resolve().name),
            "vae": show_path(vae.name),
        },
    }  # fmt: skip
    encoders: list[Encoder] = []  # built for the first shard: a finished folder needs none

    def write(name: str, members: Sequence[Source], state) -> list[str]:
        if not encoders:
            encoders.append(Encoder(base, vae, state.device, getattr(torch, precision)))
        (encoder,) = encoders
        readable, left_out = load_samples(samples, [member.entry["index"] for member in members])
        if readable:
            starts = range(0, len(readable), batch)
            batches = [encoder.encode(readable[start : start + batch]) for start in starts]
            tensors = {key: torch.cat([each[key] for each in batches]).contiguous() for key in batches[0]}
            write_file(output / f"{name}.safetensors", save(tensors))
        # if any shard is missing, the main process has one of them to write
        if state.is_main_process and not (output / EMPTY_PROMPT).is_file():
            empty = encoder.encode_prompts([""])
            write_file(
                output / EMPTY_PROMPT, save({key: value[0].contiguous() for key, value in empty.items()})
            )
        return left_out

    sources = list_samples(samples)
    return write_folder(
        output, facts, sources=sources, shard_size=shard_size, write=write, what="encode", gpu=True
    )


def list_base_files(base: Path) -> Iterator[tuple[str, Path]]:
    """The files of a base's folder that an encoder loads: all but the network, in the selected precision."""
    names = [base / "model_index.json", base / TEXT_FILE]
    for component in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"):
        half = find_variant(base / component) is not None
        names += [path for path in sorted((base / component).glob("*")) if half or ".fp16." not in path.name]
    for path in names:
        if path.is_file() and path.suffix not in OTHER_WEIGHTS and not path.name.startswith("."):
            yield f"{path.relative_to(base).as_posix()} of the base", path


def list_samples(samples: IntrinsicSamples) -> list[Source]:
    """The samples of a dataset folder with their source files; the samples of one shard share its file."""
    sources: dict[str, Source] = {}
    for index in range(len(samples)):
        entry = samples.entry(index)
        files = (
            {str(entry["shard"])}
            if "shard" in entry
            else {entry[key] for key in FILES if isinstance(entry.get(key), str)}
        )
        name = f"{entry['shard']}:{entry['row']}" if "shard" in entry else str(entry.get("image", index))
        while name in sources:  # a manifest may list a sample twice, with two captions
            name += "+"
        files |= {
            beside
            for file in files
            if (samples.folder / (beside := Path(file).with_suffix(".json").as_posix())).is_file()
        }
        sources[name] = Source(
            name,
            {file: samples.folder / file for file in sorted(files)},
            text=json.dumps(entry, sort_keys=True),
            entry={"index": index, "caption": str(entry.get("caption", ""))},
            words=f"line {samples.source.lines[index]} of {MANIFEST}",
        )
    return list(sources.values())


def load_samples(samples: IntrinsicSamples, indices: Sequence[int]) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable samples, and per sample an error or ""; ValueError for samples of several sizes."""

    def read(index: int) -> dict[str, Any] | ValueError:
        try:
            return samples[index]
        except ValueError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        results = list(pool.map(read, indices))
    readable = [sample for sample in results if isinstance(sample, dict)]
    for index, sample in zip(indices, results, strict=True):
        if isinstance(sample, ValueError):
            log.warning("%s", sample)
        elif sample["image"].shape != readable[0]["image"].shape:
            raise ValueError(
                f"Expected images of one size in {samples.folder}, got {tuple(sample['image'].shape[1:])} "
                f"(h, w) in sample {index} and {tuple(readable[0]['image'].shape[1:])} before. Give --size "
                "to resize them to one."
            )
    return readable, [str(sample) if isinstance(sample, ValueError) else "" for sample in results]
