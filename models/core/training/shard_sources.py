"""The files that a dataset folder was made from, so that a later run finds what changed since.

    FOLDER/sources.jsonl    one line a sample: its name, its shard, its row there or why it was left out, its
                            manifest entry, and each of
                            its files with size, times in ns and SHA-256

Files are known by content. Size and times only save reading: where they are as before, so is the content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..export.files import write_file
from ..text_files import read_json_lines, show_path
from ..weights.registry import hash_file
from .data import READERS
from .shards import FILES, NAMED, ShardFolder, join_lines

RECORDS = "sources.jsonl"
KINDS = {"name": str, "shard": int, "files": dict, "text": str, "fault": str, "entry": dict}  # of a line

Stamp = list  # size, mtime_ns, ctime_ns, SHA-256
Record = dict[str, Any]  # a line of RECORDS


@dataclass(frozen=True)
class Source:
    """One sample to be written.

    `files` and `text` determine what is computed, `entry` is only written to the manifest.
    """

    name: str  # of its own in the folder
    files: Mapping[str, Path]  # name in messages -> path
    text: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)  # of the manifest, besides "shard" and "row"
    fault: str = ""  # why it is left out, if that is known before computing it
    words: str = ""  # where `text` and the caption come from, for messages


@dataclass
class Changes:
    """What differs from the last run, by name."""

    replaced: list[str] = field(default_factory=list)
    reworded: list[str] = field(default_factory=list)  # only the manifest's entry: nothing is computed anew
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = [
            (self.replaced, "is replaced", "are replaced"),
            (self.reworded, "has another text", "have another text"),
            (self.added, "is new", "are new"),
            (self.removed, "is removed", "are removed"),
        ]
        return "; ".join(
            f"{name_some(names)} {one if len(names) == 1 else many}" for names, one, many in what if names
        )


def name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def stamp_file(path: Path, known: Stamp | None = None) -> Stamp | None:
    """A file's stamp, None if it cannot be read; `known` is the one of last time."""
    try:
        state = path.stat()
        times = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        return list(known) if known and list(known)[:3] == times else [*times, hash_file(path)]
    except OSError:
        return None


def stamp_sources(sources: Sequence[Source], before: Sequence[Record]) -> dict[Path, Stamp | None]:
    """The stamps of all files, each read once, by several threads: hashing releases Python's lock."""
    last = {record["name"]: record["files"] for record in before}
    known = {
        path: last.get(source.name, {}).get(name) for source in sources for name, path in source.files.items()
    }
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(known, pool.map(stamp_file, known, known.values()), strict=True))


def stamp_files(folder: ShardFolder, files: Iterable[tuple[str, Path]]) -> dict[str, Stamp | None]:
    """The stamps of the inputs of a whole folder, by name; what its last run read is not read again."""
    known = folder.read_facts().get(FILES)
    known = known if isinstance(known, dict) else {}
    return {name: stamp_file(path, known.get(name)) for name, path in files}


def is_same(stamp: Stamp | None, other: Stamp | None) -> bool:
    """Whether two stamps are of one content."""
    return (stamp and stamp[-1]) == (other and other[-1])


@dataclass
class Plan:
    """Which sample goes to which shard; `stale` shards are written, again or for the first time."""

    records: list[Record]
    stale: set[int]
    changes: Changes
    kept: int = 0  # samples of the last run whose sources are unchanged
    reworded: bool = False  # some manifest entry differs, although nothing has to be computed for it

    def shards(self) -> dict[int, list[Record]]:
        found: dict[int, list[Record]] = {}
        for record in self.records:
            found.setdefault(record["shard"], []).append(record)
        return dict(sorted(found.items()))

    def is_done(self) -> bool:
        return not (self.stale or self.reworded)


def plan_shards(before: Sequence[Record], sources: Sequence[Source], shard_size: int) -> Plan:
    """Samples keep their shard, new ones get shards of their own at the end: a change affects its shard only.

    Samples that were left out are in no shard: once corrected they count as new, and may disappear silently.
    """
    remaining, stamps = {source.name: source for source in sources}, stamp_sources(sources, before)
    plan, names = Plan([], set(), Changes()), {record["name"] for record in before}
    for record in before:
        source = remaining.get(record["name"])
        now = describe_source(source, record["shard"], stamps) if source else None
        if source is None:
            plan.changes.removed.append(shown(record["name"]))
        elif not find_changes(now, record, source, plan.changes):
            del remaining[source.name]
            plan.kept += 1
            plan.reworded |= now["entry"] != record["entry"]
            plan.records.append(now | {key: record[key] for key in ("row", "left_out") if key in record})
            continue
        if "left_out" in record:
            plan.reworded = True
            continue
        plan.stale.add(record["shard"])
        if source:
            del remaining[source.name]
            plan.records.append(now)
    first = max((record["shard"] for record in before), default=-1) + 1
    for number, source in enumerate(remaining.values()):
        shard = first + number // shard_size
        plan.stale.add(shard)
        plan.records.append(describe_source(source, shard, stamps))
    plan.changes.added = [shown(name) for name in remaining if name not in names] if before else []
    return plan


def describe_source(source: Source, shard: int, stamps: Mapping[Path, Stamp | None]) -> Record:
    files = {name: stamps[path] for name, path in source.files.items()}
    text = hashlib.sha256(source.text.encode("utf-8", "surrogatepass")).hexdigest() if source.text else ""
    return {
        "name": source.name,
        "shard": shard,
        "files": files,
        "text": text,
        "fault": source.fault,
        "entry": dict(source.entry),
    }


def find_changes(now: Record, before: Record, source: Source, changes: Changes) -> bool:
    """Whether a sample has to be computed anew; what changed is added to `changes`."""
    names = {*now["files"], *before["files"]}
    replaced = sorted(
        name for name in names if not is_same(now["files"].get(name), before["files"].get(name))
    )
    if now["text"] != before["text"] or now["fault"] != before["fault"]:
        replaced.append(source.words)
    elif now["entry"].get("caption") != before["entry"].get("caption"):
        changes.reworded.append(source.words)
    changes.replaced += [name for name in replaced if name not in changes.replaced]
    return bool(replaced)


def shown(name: str) -> str:
    """A name that any stream can write."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_records(folder: Path) -> list[Record]:
    """The lines of a folder's RECORDS, [] where there is none.

    ValueError where one is not as `write_records` writes it.
    """
    path = folder / RECORDS
    found = read_json_lines(path) if path.is_file() else []
    for number, record in found:
        if any(not isinstance(record.get(key), kind) for key, kind in KINDS.items()):
            where = f"line {number} of {show_path(path)}"
            raise ValueError(
                f"Expected a sample with {', '.join(KINDS)} in {where}, got another. Choose another folder "
                "to write to."
            )
    return [record for _, record in found]


def write_records(folder: Path, records: Iterable[Record]) -> None:
    write_file(folder / RECORDS, join_lines(records))
