"""Triples of reference, instruction and target, from a folder in one of three layouts.

A manifest: `manifest.jsonl` with "image", "target_image" and "instruction" in each line, as `spatialweave
world --kind moves` and `--kind edits` write it, or a user's own.

Three folders of equal file names:

    FOLDER/reference/0001.png    any image that Pillow opens
    FOLDER/target/0001.png
    FOLDER/instruction/0001.txt  UTF-8
    FOLDER/depth/0001.png        optional: the target's depth, as for `core.training.data`

OBject-3DIT's: a folder for each edit with `1.png`, `2.png` and `metadata.json`, at any level. Its metadata
has no sentence: `instruction.txt` beside it is read, where it lies; else the sentence says where the object
goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...core.pictures import open_rgb
from ...core.text_files import read_json_object, show_path
from ...core.training.data import FolderDataset, fit_map
from ...core.training.data_files import MANIFEST, read_depth_picture, read_sample_depth
from ...core.training.shard_sources import Source

FOLDERS = ("reference", "target", "instruction")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
KEYS = ("image", "target_image", "target_depth", "target_segmentation", "segmentation")
THREEDIT = ("1.png", "2.png", "metadata.json")
DEPTH_SCALE = 0.001  # metres per unit of a 16-bit PNG that does not state its own


@dataclass(frozen=True)
class Triple:
    """One edit."""

    reference: Tensor  # uint8 (h, w, 3)
    target: Tensor  # uint8 (h, w, 3)
    instruction: str
    depth: Tensor | None = None  # of the target, float32 (h, w), larger = farther; inf, nan or <= 0: unknown
    maps: Mapping[str, Tensor] | None = None  # what else a shard holds
    entry: Mapping[str, Any] | None = None  # the line of the manifest

    def mirrored(self) -> Triple:
        """Images and maps flipped horizontally; the instruction is left as it is."""
        maps = {key: value.flip(1) for key, value in (self.maps or {}).items()}
        depth = None if self.depth is None else self.depth.flip(1)
        return Triple(self.reference.flip(1), self.target.flip(1), self.instruction, depth, maps, self.entry)

    def fitted(self, size: tuple[int, int]) -> Triple:
        """Scaled to cover `size` (height, width) and cropped in the middle."""
        smooth = [fit_map(each, size, smooth=True) for each in (self.reference, self.target)]
        depth = None if self.depth is None else fit_map(self.depth, size, smooth=False)
        maps = {key: fit_map(value, size, smooth=False) for key, value in (self.maps or {}).items()}
        return Triple(*smooth, self.instruction, depth, maps, self.entry)


class Triples(Protocol):
    """The triples of a folder."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Triple:
        """ValueError names the sample's file or line."""
        ...

    def source(self, index: int) -> Source:
        """The files and the text of a sample, for the shards' records."""
        ...


def open_triples(folder: str | Path) -> Triples:
    """The triples of a folder, in the layout that it has."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return ManifestTriples(folder)
    if all((folder / name).is_dir() for name in FOLDERS):
        return FolderTriples(folder)
    edits = sorted(path.parent for path in folder.rglob(THREEDIT[2]) if (path.parent / THREEDIT[1]).is_file())
    if edits:
        return ThreeDitTriples(folder, edits)
    raise ValueError(
        f"Expected a {MANIFEST}, the folders {', '.join(FOLDERS)}, or OBject-3DIT's folders with "
        f"{', '.join(THREEDIT)} in {show_path(folder)}, got none of these. Choose a folder of edits, or "
        "write one with: spatialweave world --kind moves"
    )


class ManifestTriples:
    """Rows of shards, or loose files that a manifest names."""

    def __init__(self, folder: Path):
        self.dataset = FolderDataset(folder, keys=KEYS)
        for index in range(len(self.dataset)):
            text = self.dataset.entry(index).get("instruction")
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"{self.dataset.where(index)}: Expected an instruction, got none. Add one to the line."
                )

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Triple:
        entry, raw = self.dataset.entry(index), dict(self.dataset[index])
        for key in ("image", "target_image"):
            if key not in raw and isinstance(entry.get(key), str):
                raw[key] = open_rgb(self.dataset.folder / entry[key])[0]
            if key not in raw:
                raise ValueError(
                    f"{self.dataset.where(index)}: Expected {key}, got none. Name it in the line."
                )
        depth = raw.get("target_depth")
        if depth is None and isinstance(entry.get("target_depth"), str):
            depth = read_sample_depth(self.dataset.folder / entry["target_depth"], entry.get("depth_scale"))
        maps = {
            key: raw[key]
            for key in ("segmentation", "target_segmentation")
            if isinstance(raw.get(key), Tensor)
        }
        return check_sizes(
            Triple(raw["image"], raw["target_image"], entry["instruction"].strip(), depth, maps, entry),
            self.dataset.where(index),
        )

    def source(self, index: int) -> Source:
        entry = self.dataset.entry(index)
        names = {entry["shard"]} if "shard" in entry else set()
        names |= {entry[key] for key in KEYS if isinstance(entry.get(key), str)}
        return Source(
            f"{index:08d}", {name: self.dataset.folder / name for name in sorted(names)},
            text=json.dumps(entry, sort_keys=True), words=f"line {self.dataset.lines[index]} of {MANIFEST}",
        )  # fmt: skip


class FolderTriples:
    """Files of equal names in three folders."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names = sorted(path.stem for path in (folder / "instruction").glob("*.txt"))
        if not self.names:
            raise ValueError(
                f"Expected .txt files in {show_path(folder / 'instruction')}, got none. Add them."
            )
        for name in self.names:
            for part in FOLDERS[:2]:
                self.find(part, name)

    def __len__(self) -> int:
        return len(self.names)

    def find(self, part: str, name: str) -> Path:
        for suffix in PICTURES:
            if (path := self.folder / part / f"{name}{suffix}").is_file():
                return path
        raise ValueError(
            f"Expected {part}/{name} as one of {', '.join(PICTURES)} in {show_path(self.folder)}, got none. "
            f"Add it, or remove instruction/{name}.txt."
        )

    def read(self, index: int) -> Triple:
        name = self.names[index]
        text = read_sentence(self.folder / "instruction" / f"{name}.txt")
        images = [open_rgb(self.find(part, name))[0] for part in FOLDERS[:2]]
        files = sorted((self.folder / "depth").glob(f"{name}.*"))
        depth = next((path for path in files if path.suffix != ".json"), None)  # which is a PNG's scale
        read = None if depth is None else read_target_depth(depth)
        return check_sizes(Triple(*images, text, read), f"{name} of {show_path(self.folder)}")

    def source(self, index: int) -> Source:
        name = self.names[index]
        paths = [self.find(part, name) for part in FOLDERS[:2]]
        paths += [
            self.folder / "instruction" / f"{name}.txt",
            *sorted((self.folder / "depth").glob(f"{name}.*")),
        ]
        return Source(name, {path.relative_to(self.folder).as_posix(): path for path in paths})


def read_target_depth(path: Path) -> Tensor:
    """A depth file as it states its numbers; a PNG that does not state its scale holds millimetres."""
    is_silent = path.suffix.lower() == ".png" and read_depth_picture(path, show_path(path))[2] is None
    return read_sample_depth(path, DEPTH_SCALE if is_silent else None)


class ThreeDitTriples:
    """OBject-3DIT's folders."""

    def __init__(self, folder: Path, edits: Sequence[Path]):
        self.folder, self.edits = folder, tuple(edits)

    def __len__(self) -> int:
        return len(self.edits)

    def read(self, index: int) -> Triple:
        folder = self.edits[index]
        given = folder / "instruction.txt"
        text = read_sentence(given) if given.is_file() else write_sentence(folder / THREEDIT[2])
        images = [open_rgb(folder / name)[0] for name in THREEDIT[:2]]
        return check_sizes(Triple(*images, text), show_path(folder))

    def source(self, index: int) -> Source:
        folder = self.edits[index]
        names = [*THREEDIT, *(["instruction.txt"] if (folder / "instruction.txt").is_file() else [])]
        return Source(folder.relative_to(self.folder).as_posix(), {name: folder / name for name in names})


def write_sentence(path: Path) -> str:
    """An instruction from OBject-3DIT's metadata: what moves, and to which part of the image."""
    values = read_json_object(path)
    name, spot = values.get("translation_category"), values.get("end_location_2d")
    is_spot = isinstance(spot, list) and len(spot) == 2 and all(isinstance(v, int | float) for v in spot)
    if not isinstance(name, str) or not is_spot:
        raise ValueError(
            f"Expected translation_category and end_location_2d in {show_path(path)}, got none. Write "
            "instruction.txt beside it, or use the task translate."
        )
    across = ("left", "middle", "right")[min(2, int(3 * spot[0]))]
    down = ("far", "middle", "near")[min(2, int(3 * spot[1]))]
    where = "middle" if across == down == "middle" else " ".join(w for w in (down, across) if w != "middle")
    return f"Move the {name.strip().lower()} to the {where} of the image"


def read_sentence(path: Path) -> str:
    try:
        text = " ".join(path.read_text("utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected UTF-8 text in {show_path(path)}, got an error ({error}). Fix it."
        ) from error
    if not text:
        raise ValueError(f"Expected an instruction in {show_path(path)}, got an empty file. Write one.")
    return text


def check_sizes(triple: Triple, what: str) -> Triple:
    """The triple, if its images are of one size."""
    shapes = {tuple(each.shape[:2]) for each in (triple.reference, triple.target)}
    if triple.depth is not None:
        shapes.add(tuple(triple.depth.shape))
    if len(shapes) > 1:
        raise ValueError(
            f"{what}: Expected reference, target and depth of one size, got {sorted(shapes)}. Resize them."
        )
    return triple


def list_edit_sources(triples: Triples, *, mirror: bool) -> Iterator[Source]:
    """The samples to encode; with `mirror`, each is followed by its mirror image."""
    for index in range(len(triples)):
        source = triples.source(index)
        for flipped in (False, True) if mirror else (False,):
            yield Source(
                source.name + ("-mirrored" if flipped else ""), source.files, source.text,
                {"index": index, "mirrored": flipped, "caption": ""}, source.fault, source.words,
            )  # fmt: skip


def stack_edit_images(images: Sequence[Tensor]) -> Tensor:
    """uint8 (h, w, 3) each -> (b, 3, h, w) in [-1, 1]."""
    return torch.stack([image.movedim(-1, 0) for image in images]).float() / 127.5 - 1
