"""Write a folder of edits in a published layout, group by group; a run that was stopped goes on.

    OUTPUT/object_moving/worker0-000000.tar ...      layout "spatialedit", or
    OUTPUT/translate/train/000017/1.png ...          layout "object3dit"
    OUTPUT/dataset.json                              how it was written
    OUTPUT/manifest.jsonl                            where each sample is, or why it was left out

A group is a tar, or as many folders. Its marker, shard-00000.jsonl, is written after its files.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

from ...core.export.files import write_file
from ...core.text_files import read_json_lines, show_path
from ...core.training.data import FolderDataset, read_many
from ...core.training.settings import as_size
from ...core.training.shards import ShardFolder, check_facts
from ...core.training.sources import fingerprint_path
from .edits import EditSample, open_edit_folder, read_edit
from .layouts import (
    DESCRIPTIONS,
    object_uid,
    pack_tar,
    spatialedit_files,
    spatialedit_task,
    threedit_fault,
    threedit_files,
    threedit_folder,
)

log = logging.getLogger("spatialweave.dataset")
FORMAT, VERSION = "spatialweave-joyai-edits", 1
Layout = Literal["spatialedit", "object3dit"]
Split = Literal["train", "val", "test"]
LEFT_OUT = "left_out"


@dataclass(frozen=True)
class LayoutRequest:
    """Settings of an export; equal settings write equal bytes."""

    layout: Layout
    split: Split = "train"  # of OBject-3DIT's folders
    unseen: bool = False  # val and test of OBject-3DIT: objects that training has not seen
    size: int | None = None  # pixels a side; None: as they are
    shard_size: int = 100  # samples of a group
    quality: int = 95  # of JPEG

    def __post_init__(self) -> None:
        for name, options in (("layout", get_args(Layout)), ("split", get_args(Split))):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"Expected a {name} of {', '.join(options)}, got {getattr(self, name)!r}. Choose one."
                )
        if self.unseen and (self.layout != "object3dit" or self.split == "train"):
            raise ValueError(
                "Expected unseen with OBject-3DIT's val or test, got it with "
                f"{self.layout}'s {self.split}. Leave it out."
            )


@dataclass(frozen=True)
class ExportSummary:
    """What is in the folder."""

    folder: Path
    written: int  # samples of this run
    stored: int  # samples, of this run and earlier ones
    left_out: Mapping[str, int]  # why -> how many

    def __str__(self) -> str:
        earlier = self.stored - self.written
        kept = f", {earlier} of them from an earlier run" if earlier else ""
        lines = [f"{show_path(self.folder)}: {self.stored} edits{kept}."]
        if self.left_out:
            named = "; ".join(f"{count} ({why})" for why, count in sorted(self.left_out.items()))
            lines.append(f"Left out: {named}.")
        return " ".join(lines)


def export_edits(source: str | Path, output: str | Path, request: LayoutRequest) -> ExportSummary:
    """Write the edits of a dataset folder. ValueError for other settings or sources than a begun folder's."""
    dataset, folder = open_edit_folder(source), ShardFolder(Path(output))
    if Path(output).resolve() == Path(source).resolve():
        raise ValueError(f"Expected another folder than {show_path(source)} to write to. Name a new one.")
    facts = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **asdict(request)}))
    facts["source"] = fingerprint_edits(dataset)
    check_facts(folder, facts)
    groups = list(group_edits(dataset, request))
    if folder.is_finished:
        lines = [line for _, line in read_json_lines(folder.path / "manifest.jsonl")]
        return count_stored(folder, lines, 0)
    folder.write_facts(facts, finished=False)
    written = 0
    with tqdm(total=len(dataset), desc="edits", unit="edit", dynamic_ncols=True, disable=None) as bar:
        for number, (name, indices) in enumerate(groups):
            if not folder.marker_file(number).is_file():
                lines = write_group(folder.path, dataset, name, indices, request)
                folder.write_marker(number, lines)
                written += sum(LEFT_OUT not in line for line in lines)
            bar.update(len(indices))
    lines = [
        line for number in range(len(groups)) for _, line in read_json_lines(folder.marker_file(number))
    ]
    if request.layout == "object3dit":
        descriptions = {line["uid"]: {"description": line["object"]} for line in lines if "uid" in line}
        write_file(folder.path / DESCRIPTIONS, json.dumps(descriptions, sort_keys=True).encode())
    folder.finish(lines, facts)
    return count_stored(folder, lines, written)


def count_stored(folder: ShardFolder, lines: Sequence[Mapping[str, Any]], written: int) -> ExportSummary:
    left_out = Counter(line[LEFT_OUT] for line in lines if LEFT_OUT in line)
    return ExportSummary(folder.path, written, len(lines) - sum(left_out.values()), dict(left_out))


def fingerprint_edits(dataset: FolderDataset) -> str:
    """A hash of the manifest and of the files that it names."""
    files = json.dumps(fingerprint_path(dataset.folder), sort_keys=True)
    return hashlib.sha256(files.encode()).hexdigest()[:16]


def group_edits(dataset: FolderDataset, request: LayoutRequest) -> Iterator[tuple[str, list[int]]]:
    """(the tar's path or the folder's, the samples of it), kind by kind."""
    kinds: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        kinds.setdefault(dataset.entry(index).get("kind", "edit"), []).append(index)
    for kind, indices in kinds.items():
        for part, start in enumerate(range(0, len(indices), request.shard_size)):
            name = f"{spatialedit_task(kind)}/worker0-{part:06d}.tar"
            yield name, indices[start : start + request.shard_size]


def write_group(
    folder: Path, dataset: FolderDataset, name: str, indices: Sequence[int], request: LayoutRequest
) -> list[dict[str, Any]]:
    """Write one group; a manifest line for each of its samples."""
    lines, packed = [], []
    for index, sample in zip(indices, read_samples_of(dataset, indices, request), strict=True):
        line: dict[str, Any] = {"index": index}
        fault = sample if isinstance(sample, str) else find_layout_fault(sample, request)
        if fault:
            lines.append(line | {LEFT_OUT: fault})
            continue
        line |= {"kind": sample.kind, "instruction": sample.instruction}
        if request.layout == "spatialedit":
            packed.append(spatialedit_files(f"{index:08d}", sample, request.quality))
            lines.append(line | {"tar": name, "key": f"{index:08d}", "prompt": sample.prompt})
            continue
        relative = f"{threedit_folder(sample.kind, request.split, request.unseen)}/{index:08d}"
        for file, data in threedit_files(sample).items():
            write_file(folder / relative / file, data)
        lines.append(line | {"folder": relative, "uid": object_uid(sample.name), "object": sample.name})
    if packed:
        write_file(folder / name, pack_tar(packed))
    return lines


def read_samples_of(
    dataset: FolderDataset, indices: Sequence[int], request: LayoutRequest
) -> list[EditSample | str]:
    """Each sample, or why it cannot be read."""

    class Reader:
        def __getitem__(self, index: int) -> EditSample | str:
            try:
                return read_edit(dataset, index, as_size(request.size))
            except ValueError as error:
                log.warning("%s", error)
                return "a sample that cannot be read"

    return read_many(Reader(), indices)


def find_layout_fault(sample: EditSample, request: LayoutRequest) -> str:
    """Why a sample cannot be stored in the layout, or ""."""
    if request.layout == "spatialedit":
        return "" if sample.prompt else sample.lacks
    return threedit_fault(sample)
