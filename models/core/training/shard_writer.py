"""Write a dataset folder shard by shard: resumable, shared among accelerate's or torchrun's processes.

The files are those of `shards.ShardFolder`, besides:

    FOLDER/sources.jsonl         the files of each sample, see `shard_sources`
    FOLDER/shard-00000.jsonl     the marker of a finished shard: a list with "" for each of its samples that
                                 is in it, or why it was
                                 left out

Each process writes its part of the shards that are not there yet; machines share the work when they see the
same folder: `torchrun --standalone --nproc-per-node 2 --no-python spatialweave intrinsics ...`. A later run
of a finished folder writes the shards whose sources were replaced or removed again, and adds shards for new
ones.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..text_files import TextFileError, read_json, show_path
from .shard_sources import Plan, Source, name_some, plan_shards, read_records, shown, write_records
from .shards import NAMED, ShardFolder, check_facts, check_source

log = logging.getLogger("spatialweave.dataset")

# (the shard's name without ending, its samples, accelerate's view of this process) -> for each sample "" or
# why it was left out
WriteShard = Callable[[str, Sequence[Source], Any], list[str]]


@dataclass(frozen=True)
class Summary:
    """The result of a run: `written` samples by this process, the others existed or are other processes'."""

    folder: Path
    count: int
    written: int
    processes: int
    left_out: tuple[tuple[str, str], ...] = ()  # (name, why)
    changes: str = ""  # since the last run

    def __str__(self) -> str:
        shared = f", {self.processes} processes at work" if self.processes > 1 else ""
        lines = [
            f"{show_path(self.folder)}: {self.count} samples, "
            f"{self.written} of them written in this process{shared}."
        ]
        if self.changes:
            lines.append(f"Since the last run {self.changes}.")
        if self.left_out:
            named = [f"{shown(name)} ({why.removesuffix('.')})" for name, why in self.left_out[:NAMED]]
            more = (
                f" and {len(self.left_out) - NAMED} more, which sources.jsonl names"
                if len(self.left_out) > NAMED
                else ""
            )
            remedy = "Correct or replace them and run again, or delete their shards to try them unchanged."
            lines.append(f"{len(self.left_out)} left out: {', '.join(named)}{more}. {remedy}")
        return " ".join(lines)


def write_folder(
    folder: str | Path,
    facts: Mapping[str, Any],
    *,
    sources: Sequence[Source],
    shard_size: int,
    write: WriteShard,
    what: str,
    gpu: bool = False,
) -> Summary:
    """Write the shards that are missing or whose sources changed and, when all exist, the manifest.

    `facts` state how the folder is written, as JSON: a folder begun with others is refused. `gpu`: run on one
    if there is one.
    """
    folder = ShardFolder(Path(folder))
    facts = json.loads(json.dumps(facts))
    with processes(gpu=gpu) as state:
        check_facts(folder, facts)
        state.wait_for_everyone()  # nobody writes before everybody has looked
        changes = ""
        if state.is_main_process:
            changes = begin(folder, facts, plan_folder(folder, facts, sources, shard_size))
        state.wait_for_everyone()
        if folder.is_finished:
            return summarise(folder, 0, state, changes)
        shards, named = group_shards(folder), {source.name: source for source in sources}
        missing = [number for number in shards if not folder.marker_file(number).is_file()]
        state.wait_for_everyone()
        with state.split_between_processes(missing) as mine:
            gone = [shown(name) for number in mine for name in shards[number] if name not in named]
            if gone:
                raise ValueError(
                    f"Expected the same sources in every process, got none for {name_some(gone)}. Run again."
                )
            todo = {number: [named[name] for name in shards[number]] for number in mine}
            written = write_shards(folder, todo, write, state, what)
        state.wait_for_everyone()
        if state.is_main_process:
            finish(folder, facts, named)
        state.wait_for_everyone()
        return summarise(folder, written, state, changes)


def plan_folder(
    folder: ShardFolder, facts: Mapping[str, Any], sources: Sequence[Source], shard_size: int
) -> Plan:
    """The shards to write, those whose file is missing or was not written yet among them."""
    finished, before = folder.is_finished, read_records(folder.path)
    plan = plan_shards(before, sources, shard_size)
    if before and not plan.kept:
        check_source(folder, facts)
    for number, records in plan.shards().items():
        if number not in plan.stale and not is_whole(folder, number, records, finished):
            plan.stale.add(number)
    return plan


def is_whole(folder: ShardFolder, number: int, records: Sequence[Mapping[str, Any]], finished: bool) -> bool:
    """Whether a shard was written and still exists; one whose samples were all left out has no file."""
    if finished:
        left_out = [record.get("left_out", "") for record in records]
    else:
        left_out = read_marker(folder, number, len(records))
    return left_out is not None and ("" not in left_out or folder.tensor_file(number).is_file())


def begin(folder: ShardFolder, facts: Mapping[str, Any], plan: Plan) -> str:
    """Write the plan to disk; returns what changed since the last run, in words.

    If stopped in here, the next run finds the same work.
    """
    if folder.is_finished:
        if plan.is_done():
            return ""
        for number, records in plan.shards().items():
            if number not in plan.stale:
                folder.write_marker(number, [[record.get("left_out", "") for record in records]])
    folder.write_facts(facts, finished=False)
    folder.remove_manifest()
    folder.remove_shards(plan.stale)
    write_records(folder.path, plan.records)
    changes = str(plan.changes)
    if changes:
        log.warning("Since the last run %s; shards to write: %d.", changes, len(plan.stale))
    return changes


def group_shards(folder: ShardFolder) -> dict[int, list[str]]:
    """The names of each shard's samples."""
    found: dict[int, list[str]] = {}
    for record in read_records(folder.path):
        found.setdefault(record["shard"], []).append(record["name"])
    return found


def write_shards(
    folder: ShardFolder, shards: Mapping[int, Sequence[Source]], write: WriteShard, state, what: str
) -> int:
    """This process's part of the work; returns how many samples it wrote."""
    written = 0
    with tqdm(
        total=sum(map(len, shards.values())), desc=what, unit="sample", dynamic_ncols=True, disable=None
    ) as bar:
        for number, sources in shards.items():
            left_out = write(folder.shard_name(number), sources, state)
            folder.write_marker(number, [list(left_out)])
            written += left_out.count("")
            bar.update(len(sources))
    return written


@contextmanager
def processes(*, gpu: bool) -> Iterator[Any]:
    """accelerate's view of the processes: one, or those that it or torchrun started.

    ValueError if it does not see those.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "Expected the package accelerate for writing a dataset, got none. Install it: pip install "
            '"spatialweave[train]".'
        ) from error
    state = PartialState(cpu=not (gpu and torch.cuda.is_available()))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if state.num_processes != started:
            raise ValueError(
                f"Expected accelerate to see the {started} processes that were started, got "
                f"{state.num_processes}: each would write everything. Start them with accelerate launch or "
                "torchrun."
            )
        yield state
    finally:
        state._reset_state()  # else a training run of this process could not choose its device


def finish(folder: ShardFolder, facts: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    """The manifest of the samples in the shards, in the order of the shards."""
    records, lines = read_records(folder.path), []
    shards: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        shards.setdefault(record["shard"], []).append(record)
    for number, members in shards.items():
        row = 0
        left_out = read_marker(folder, number, len(members))
        if left_out is None:
            marker = show_path(folder.marker_file(number))
            raise ValueError(f"Expected the samples of a shard in {marker}, got none. Run again.")
        for record, why in zip(members, left_out, strict=True):
            for key in ("row", "left_out"):
                record.pop(key, None)
            record |= {"left_out": why} if why else {"row": row}
            if not why:
                lines.append(
                    {"shard": folder.tensor_file(number).name, "row": row, **sources[record["name"]].entry}
                )
                row += 1
    if not lines:
        name, why = shown(records[0]["name"]), records[0].get("left_out")
        raise ValueError(
            f"Expected at least one usable sample for {show_path(folder.path)}, got none of {len(records)}; "
            f"the first, {name}: {why}"
        )
    write_records(folder.path, records)
    folder.finish(lines, facts)


def summarise(folder: ShardFolder, written: int, state, changes: str) -> Summary:
    records = read_records(folder.path)
    left_out = tuple((record["name"], record["left_out"]) for record in records if "left_out" in record)
    return Summary(folder.path, len(records) - len(left_out), written, state.num_processes, left_out, changes)


def read_marker(folder: ShardFolder, number: int, count: int) -> list[str] | None:
    """For each of a shard's samples "" or why it was left out; None if that was not written, or for another
    number of samples.
    """
    try:
        found = read_json(folder.marker_file(number))
    except (OSError, TextFileError):
        return None
    is_whole = isinstance(found, list) and len(found) == count and all(isinstance(why, str) for why in found)
    return found if is_whole else None
