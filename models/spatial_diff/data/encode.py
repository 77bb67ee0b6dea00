"""Encodings of triples, computed once before training, in resumable shards.

    OUTPUT/shard-00000.safetensors
        `latent` and `reference`, float16 (n, c, h, w): the images as the editor takes them
        `tokens` (n, k), ids of the tiny editor's words; or `context` (n, k, c) and `pooled` (n, c), bfloat16
    OUTPUT/manifest.jsonl                {"shard", "row", "index" of the triple, "mirrored"}
    OUTPUT/dataset.json, sources.jsonl   the settings, and the source files by content hash

Geometry tokens and depth latents lie in a folder of their own, see `geometry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from ...core.export.files import write_file
from ...core.training.shard_sources import Source
from ...core.training.shard_writer import Summary, write_folder
from ..grammar import mirror_instruction
from .triples import Triple, Triples, list_edit_sources, open_triples, stack_edit_images

FORMAT, VERSION = "spatialweave-edit-encodings", 1
EncodeBatch = Callable[[Sequence[Triple]], dict[str, Tensor]]


class Encoders(Protocol):
    """What turns triples into an editor's inputs."""

    def facts(self) -> Mapping[str, Any]:
        """What the encodings depend on, as JSON."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] -> latents (b, c, h, w), as the network takes them."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of the instructions, samples first."""
        ...


def encode_triples(
    source: str | Path,
    output: str | Path,
    encoders: Encoders,
    *,
    size: tuple[int, int] | None = None,
    mirror: bool = False,
    shard_size: int = 500,
    more: EncodeBatch | None = None,
) -> Summary:
    """Encode the triples of a folder.

    `mirror`: each also mirrored, with left and right exchanged in its words. `more` adds tensors that are
    not the editor's, computed from the triples.
    """
    triples = open_triples(source)

    def encode(batch: Sequence[Triple]) -> dict[str, Tensor]:
        pairs = stack_edit_images([image for each in batch for image in (each.reference, each.target)])
        latents = encoders.encode_images(pairs).half()
        tensors = {"reference": latents[0::2], "latent": latents[1::2]}
        tensors |= encoders.encode_texts([each.instruction for each in batch])
        return tensors | (more(batch) if more else {})

    facts = {"format": FORMAT, "version": VERSION, **encoders.facts(), "mirror": mirror}
    return write_edit_encodings(
        triples, output, facts, encode, size=size, mirror=mirror, shard_size=shard_size
    )


def write_edit_encodings(
    triples: Triples,
    output: str | Path,
    facts: Mapping[str, Any],
    encode: EncodeBatch,
    *,
    size: tuple[int, int] | None,
    mirror: bool,
    shard_size: int,
    batch: int = 32,
) -> Summary:
    """Write `encode` of all triples, shard by shard. A finished shard is kept by a later run."""
    folder = Path(output)

    def write(name: str, members: Sequence[Source], state) -> list[str]:
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(members), batch):
            read = [read_member(triples, member, size) for member in members[start : start + batch]]
            with torch.no_grad():
                parts.append(encode(read))
        tensors = {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}
        write_file(folder / f"{name}.safetensors", save(tensors))
        return [""] * len(members)

    sources = list(list_edit_sources(triples, mirror=mirror))
    facts = {**facts, "size": list(size) if size else None, "shard_size": shard_size}
    return write_folder(
        folder, facts, sources=sources, shard_size=shard_size, write=write, what="encode", gpu=True
    )


def read_member(triples: Triples, member: Source, size: tuple[int, int] | None) -> Triple:
    """A triple as it is encoded."""
    triple = triples.read(member.entry["index"])
    if size:
        triple = triple.fitted(size)
    if member.entry["mirrored"]:
        return replace(triple.mirrored(), instruction=mirror_instruction(triple.instruction))
    return triple
