"""Latents and encodings of edits, computed once before the training of a LoRA on JoyImage-Edit.

`spatialweave joyai encode` writes

    OUTPUT/shard-00000.safetensors      the tensors of `training.loss`: latent and reference in float16,
                                        posterior means as the network takes them; contexts in bfloat16
    OUTPUT/manifest.jsonl               {"shard", "row", "index" in the source, "caption": the instruction}
    OUTPUT/dataset.json, sources.jsonl  the settings, and the source files by content hash

Image autoencoder, text encoder and processor are the base's own, run by diffusers. An edit that JoyAI has no
prompt for is left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ...core.export.files import write_file
from ...core.text_files import show_path
from ...core.training.data import MANIFEST, FolderDataset
from ...core.training.shard_sources import Source, stamp_files
from ...core.training.shard_writer import Summary, write_folder
from ...core.training.shards import ShardFolder
from ..buckets import BASE, Size, find_bucket
from .edits import FILE_KEYS, EditSample, open_edit_folder, read_edit

FORMAT, VERSION = "spatialweave-joyai-encodings", 1
AREAS = (256, 512, 768, 1024)  # pixels a side of the square that buckets are about as large as
TAIL = "<|im_end|>\n<|im_start|>assistant\n"  # what follows the prompt in the text encoder
PARTS = ("vae", "text_encoder", "tokenizer", "processor")


class EditEncoder:
    """The base's autoencoder and text encoder on edits."""

    def __init__(self, base: Path, device: torch.device, dtype: torch.dtype):
        pipeline = find_pipeline_class().from_pretrained(
            base, transformer=None, torch_dtype=dtype, local_files_only=True
        )
        self.pipeline, self.device = pipeline, device
        pipeline.vae.to(device, torch.float32).requires_grad_(False)
        pipeline.text_encoder.to(device).requires_grad_(False)
        self.tail = len(pipeline.tokenizer(TAIL)["input_ids"])

    @torch.no_grad()
    def encode(self, sample: EditSample) -> dict[str, Tensor]:
        """All tensors of one edit, on the CPU."""
        seen = sample.with_box()
        context, empty = (self.encode_prompt(text, seen) for text in (sample.prompt, ""))
        return {
            "latent": self.encode_image(sample.target),
            "reference": self.encode_image(seen),
            "context": context,
            "context_tokens": torch.tensor(len(context), dtype=torch.int32),
            "prefix_tokens": torch.tensor(len(empty) - self.tail, dtype=torch.int32),
            "empty_tail": empty[-self.tail :],
        }

    def encode_prompt(self, prompt: str, image: Tensor) -> Tensor:
        """(tokens, d): the encoder's states for an image and a prompt, without those of the system prompt."""
        from PIL import Image

        picture = Image.fromarray(image.numpy())
        found, _ = self.pipeline.encode_prompt_multiple_images(prompt, device=self.device, images=[picture])
        return found[0].to("cpu", torch.bfloat16)

    def encode_image(self, image: Tensor) -> Tensor:
        """(c, h, w): the posterior's mean, normalized as the network takes it."""
        pixels = image.to(self.device).float().movedim(-1, 0)[None, :, None] / 127.5 - 1
        latent = self.pipeline.normalize_latents(self.pipeline.vae.encode(pixels).latent_dist.mode())
        return latent[0, :, 0].to("cpu", torch.float16)


def find_pipeline_class():
    """diffusers' class of the pipeline; an error explains what to install."""
    if find_spec("torchvision") is None:
        raise ImportError(
            "Expected torchvision, for the text encoder's image processor, got none. Install it: pip install "
            "torchvision."
        )
    try:
        from diffusers import JoyImageEditPipeline
    except ImportError as error:
        raise ImportError(
            "Expected a diffusers with JoyImageEditPipeline, for encoding edits, got none. Install it: pip "
            'install -U "spatialweave[train]".'
        ) from error
    return JoyImageEditPipeline


def encode_edits(
    source: str | Path, output: str | Path, *, base: str | Path, size: int = BASE, shard_size: int = 16,
    precision: str = "bfloat16",
) -> Summary:  # fmt: skip
    """Encode the edits of a dataset folder, scaled to cover the bucket of their shape."""
    base, dataset = Path(base), open_edit_folder(source)
    if size not in AREAS:
        raise ValueError(f"Expected a size of {', '.join(map(str, AREAS))}, got {size}. Choose one of them.")
    missing = [part for part in PARTS if not (base / part).is_dir()]
    if missing:
        raise ValueError(
            f"Expected JoyImage-Edit in diffusers' form in {show_path(base)}, got a folder without "
            f"{', '.join(missing)}. Give --base the pipeline's folder."
        )
    bucket = find_sample_bucket(dataset, 0, size)
    facts = {
        "format": FORMAT, "version": VERSION, "size": list(bucket), "precision": precision,
        "files": stamp_files(ShardFolder(Path(output)), list_encoder_files_of(base)),
        "about": {"source": show_path(Path(source).resolve().name), "base": show_path(base.resolve().name)},
    }  # fmt: skip
    made: list[EditEncoder] = []  # built for the first shard: a finished folder needs none

    def write(name: str, members: Sequence[Source], state) -> list[str]:
        if not made:
            made.append(EditEncoder(base, state.device, getattr(torch, precision)))
        return write_encodings(
            Path(output) / f"{name}.safetensors", dataset, members, made[0], size=size, bucket=bucket
        )

    return write_folder(
        output, facts, sources=list(list_edits(dataset)), shard_size=shard_size, write=write, what="encode",
        gpu=True,
    )  # fmt: skip


def write_encodings(
    path: Path, dataset: FolderDataset, members: Sequence[Source], encoder: EditEncoder, *, size: int,
    bucket: Size,
) -> list[str]:  # fmt: skip
    """Write one shard; for each member "" or why it was left out."""
    indices = [member.entry["index"] for member in members]
    for index in indices:
        own = find_sample_bucket(dataset, index, size)
        if own != bucket:
            raise ValueError(
                f"{dataset.where(index)}: Expected an image of the bucket {bucket[1]} x {bucket[0]}, as the "
                f"first, got one of {own[1]} x {own[0]}. Encode images of another shape into a folder of "
                "their own."
            )
    samples = [read_edit(dataset, index, bucket) for index in indices]
    left_out = ["" if sample.prompt else sample.lacks for sample in samples]
    encoded = [encoder.encode(sample) for sample in samples if sample.prompt]
    if encoded:
        write_file(path, save(stack_encodings(encoded)))
    return left_out


def stack_encodings(encoded: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a shard: contexts padded with zeros to the longest."""
    longest = max(len(part["context"]) for part in encoded)
    stacked = {}
    for key in encoded[0]:
        values = [part[key] for part in encoded]
        if key == "context":
            rows = [value.new_zeros(longest - len(value), value.shape[1]) for value in values]
            values = [torch.cat(pair) for pair in zip(values, rows, strict=True)]
        stacked[key] = torch.stack(values).contiguous()
    return stacked


def find_sample_bucket(dataset: FolderDataset, index: int, size: int) -> Size:
    """The bucket of a sample's source image."""
    return find_bucket(*dataset[index]["image"].shape[:2], base=size)


def list_encoder_files_of(base: Path) -> Iterator[tuple[str, Path]]:
    """The base's files that an encoder reads."""
    for part in PARTS:
        for path in sorted((base / part).iterdir()):
            if path.is_file() and path.suffix in (".json", ".safetensors", ".txt", ".jinja"):
                yield f"{path.relative_to(base).as_posix()} of the base", path


def list_edits(dataset: FolderDataset) -> Iterator[Source]:
    """The samples with their source files."""
    for index in range(len(dataset)):
        entry = dataset.entry(index)
        files = {entry["shard"]} if "shard" in entry else set()
        files |= {entry[key] for key in FILE_KEYS if isinstance(entry.get(key), str)}
        yield Source(
            f"{index:08d}",
            {file: dataset.folder / file for file in sorted(files)},
            text=json.dumps(entry, sort_keys=True),
            entry={"index": index, "caption": str(entry.get("instruction", ""))},
            words=f"line {dataset.lines[index]} of {MANIFEST}",
        )
