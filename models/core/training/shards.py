"""A dataset folder on disk while it is written shard by shard: its facts, a marker for each finished shard,
its manifest.

    FOLDER/dataset.json          how the folder is written and from what; "finished": true once all shards are
                                 there
    FOLDER/shard-00000.*         the shard's tensors (safetensors), or the files that its manifest lines name
    FOLDER/shard-00000.jsonl     the marker of a finished shard: written after its tensors, removed at the end
    FOLDER/manifest.jsonl        one line a sample, written at the end

A shard with a marker is whole: a run that was stopped goes on with the shards that have none. `shard_writer`
runs this for samples that are made from files, shared among processes; datasets that render their samples use
`ShardFolder` alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..export.files import write_file
from ..text_files import TextFileError, read_json_object, show_path
from .checkpoint import write_json
from .data import MANIFEST

DATASET = "dataset.json"
FINISHED, FILES, VERSION = "finished", "files", "version"
ABOUT = "about"  # names, for people: renamed, a folder is still the same
NAMED = 5  # at most, in one sentence


@dataclass(frozen=True)
class ShardFolder:
    """The files of a dataset folder that state which of its shards are written."""

    path: Path

    def read_facts(self) -> dict[str, Any]:
        """The content of dataset.json, {} for a new folder.

        ValueError for a folder that holds anything else.
        """
        file = self.path / DATASET
        if not file.is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise ValueError(
                    f"Expected an empty folder or one with {DATASET}, got {show_path(self.path)} with other "
                    "files. Choose an empty folder for the dataset."
                )
            return {}
        try:
            facts = read_json_object(file)
            fault = "" if facts else "it is empty"
        except TextFileError as error:
            fault = str(error)
        if fault:
            raise ValueError(
                f"Expected {show_path(file)} to state what its folder holds, got a file that does not "
                f"({fault}). Choose another folder."
            )
        return facts

    def write_facts(self, facts: Mapping[str, Any], *, finished: bool) -> None:
        write_json(self.path / DATASET, {**facts, FINISHED: finished})

    @property
    def is_finished(self) -> bool:
        return bool(self.read_facts().get(FINISHED))

    @staticmethod
    def shard_name(number: int) -> str:
        """The name of a shard's files, without suffix."""
        return f"shard-{number:05d}"

    def tensor_file(self, number: int) -> Path:
        return self.path / f"{self.shard_name(number)}.safetensors"

    def marker_file(self, number: int) -> Path:
        return self.path / f"{self.shard_name(number)}.jsonl"

    def write_marker(self, number: int, lines: Iterable[Any]) -> None:
        """Mark a shard as finished: one JSON value a line, after all its other files are on disk."""
        write_file(self.marker_file(number), join_lines(lines))

    def remove_shards(self, numbers: Iterable[int]) -> None:
        """Delete the markers and tensors of shards that have to be written again."""
        for number in numbers:
            for file in (self.marker_file(number), self.tensor_file(number)):
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()

    def remove_manifest(self) -> None:
        """Delete the manifest, whose rows no longer match the shards."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / MANIFEST).unlink()

    def finish(self, lines: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        """Write the manifest, mark the folder as finished, and only then delete the markers: a stop in
        between loses nothing.
        """
        write_file(self.path / MANIFEST, join_lines(lines))
        self.write_facts(facts, finished=True)
        for file in self.path.glob("shard-?????.jsonl"):
            file.unlink()


def join_lines(values: Iterable[Any]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def check_facts(folder: ShardFolder, facts: Mapping[str, Any]) -> None:
    """ValueError names each setting and each file that differs from those of a folder's earlier run."""
    found = folder.read_facts()
    if not found:
        return
    if found.get(VERSION) != facts.get(VERSION):
        raise ValueError(
            f"Expected {show_path(folder.path / DATASET)} of version {facts.get(VERSION)}, got "
            f"{found.get(VERSION)!r}: the folder does not say which files it was made from. A finished one "
            "trains as it is; choose another folder to write to."
        )
    before, now, compared = flatten(found), flatten(facts), facts.keys() - {ABOUT}
    changed = [
        key
        for key in sorted(now.keys() | before.keys())
        if before.get(key) != now.get(key) and key.split(".")[0] in compared
    ]
    if changed:
        named = ", ".join(describe_change(key, before, now) for key in changed[:NAMED])
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise ValueError(
            f"Expected the settings with which {show_path(folder.path)} was begun, got {named}{more}. Give "
            "the same to continue, or choose another folder."
        )


def check_source(folder: ShardFolder, facts: Mapping[str, Any]) -> None:
    """ValueError if a folder was made from another source folder, whose samples it would lose."""
    before, now = (flatten(found).get(f"{ABOUT}.source") for found in (folder.read_facts(), facts))
    if before != now:
        raise ValueError(
            f"Expected the samples of {before!r}, from which {show_path(folder.path)} was made, got {now!r}, "
            "which holds none of them. Choose another folder to write to."
        )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects flattened, with dots between the names; of a file's stamp only the content counts."""
    if prefix.startswith(f"{FILES}."):
        return {prefix: value[-1] if isinstance(value, list) and value else value}
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        flat |= flatten(entry, f"{prefix}.{name}" if prefix else str(name))
    return flat


def describe_change(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One difference in words, without hashes."""
    if key.startswith(f"{FILES}."):
        what = "without" if key not in before else "with" if key not in now else "another"
        return f"{what} {key.removeprefix(f'{FILES}.')}"
    return f"{key} {before.get(key)!r}, not {now.get(key)!r}"
