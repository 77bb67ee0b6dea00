"""Writing a dataset folder shard by shard: resumable, and shared among the processes that accelerate or torchrun started.

    FOLDER/dataset.json          what the folder is made from and how; "finished" once all is there
    FOLDER/manifest.jsonl        one line a sample, written at the end
    FOLDER/shard-00000.jsonl     until then: the lines of a shard, written after the shard itself, so that where they stand it is whole

Each process takes its part of the shards that are not there yet; machines share the work when they see the same folder:
`torchrun --standalone --nproc-per-node 2 --no-python spatialweave intrinsics ...`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..core.export.files import write_file
from ..core.training.data import MANIFEST

DATASET = "dataset.json"
FINISHED = "finished"
# (the shard's name without ending, its samples, accelerate's view of this process) -> manifest lines
WriteShard = Callable[[str, range, Any], list[dict[str, Any]]]


@dataclass(frozen=True)
class Summary:
    """What a run did: `written` samples by this process, the others were there or are other processes'."""

    folder: Path
    count: int
    written: int
    processes: int

    def __str__(self) -> str:
        shared = f", {self.processes} processes at work" if self.processes > 1 else ""
        return f"{self.folder}: {self.count} samples, {self.written} of them written in this process{shared}."


def write_folder(
    folder: str | Path, facts: Mapping[str, Any], *, count: int, shard_size: int, write: WriteShard, what: str, gpu: bool = False
) -> Summary:
    """Write the shards that are missing and, when all are there, the manifest. `facts` say what is written, as JSON: a folder that was
    begun with others is refused, an unfinished one of the same is completed. `gpu`: the work is done on one where there is one."""
    folder = Path(folder)
    facts = json.loads(json.dumps({**facts, "count": count, "shard_size": shard_size}))
    with processes(gpu=gpu) as state:
        finished = check_facts(folder, facts)
        state.wait_for_everyone()  # nobody writes before everybody has looked
        if finished:
            return Summary(folder, count_lines(folder), 0, state.num_processes)
        if state.is_main_process:
            write_facts(folder, facts, finished=False)
        shards = [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
        missing = [number for number in range(len(shards)) if not part_file(folder, number).is_file()]
        state.wait_for_everyone()
        with state.split_between_processes(missing) as mine:
            written = write_shards(folder, {number: shards[number] for number in mine}, write, state, what)
        state.wait_for_everyone()
        if state.is_main_process:
            join_parts(folder, facts, len(shards))
        state.wait_for_everyone()
        return Summary(folder, count_lines(folder), written, state.num_processes)


def write_shards(folder: Path, shards: Mapping[int, range], write: WriteShard, state, what: str) -> int:
    """This process's part of the work; how many samples it wrote."""
    written = 0
    with tqdm(total=sum(map(len, shards.values())), desc=what, unit="sample", dynamic_ncols=True, disable=None) as bar:
        for number, rows in shards.items():
            lines = write(shard_name(number), rows, state)
            write_file(part_file(folder, number), "".join(json.dumps(line) + "\n" for line in lines).encode())
            written += len(lines)
            bar.update(len(rows))
    return written


@contextmanager
def processes(*, gpu: bool) -> Iterator[Any]:
    """accelerate's view of the processes: one, or those that it or torchrun started. ValueError where it does not see those."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError('Writing a dataset needs accelerate, which is not installed: pip install "spatialweave[train]".') from error
    state = PartialState(cpu=not (gpu and torch.cuda.is_available()))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if state.num_processes != started:
            raise ValueError(f"{started} processes were started, but accelerate sees {state.num_processes}: each would write everything.")
        yield state
    finally:
        state._reset_state()  # else a training run of this process could not choose its device


def check_facts(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the folder is finished; ValueError where it holds something else."""
    path = folder / DATASET
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds other files and no {DATASET}; choose an empty folder for the dataset.")
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in sorted({*facts, *found} - {FINISHED}) if found.get(key) != facts.get(key)]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not say what its folder holds ({error}); choose another folder.") from error
    if changed:
        named = ", ".join(f"{key} {found.get(key)!r}, not {facts.get(key)!r}" for key in changed)
        raise ValueError(f"{folder} was begun with {named}; give the same settings to go on, or choose another folder.")
    return bool(found.get(FINISHED))


def write_facts(folder: Path, facts: Mapping[str, Any], *, finished: bool) -> None:
    write_file(folder / DATASET, (json.dumps({**facts, FINISHED: finished}, indent=1) + "\n").encode())


def join_parts(folder: Path, facts: Mapping[str, Any], shards: int) -> None:
    """The manifest of all the shards' lines; then the parts are not needed."""
    parts = [part_file(folder, number) for number in range(shards)]
    write_file(folder / MANIFEST, b"".join(path.read_bytes() for path in parts))
    write_facts(folder, facts, finished=True)
    for path in parts:
        path.unlink()


def count_lines(folder: Path) -> int:
    return len((folder / MANIFEST).read_bytes().splitlines())


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def part_file(folder: Path, number: int) -> Path:
    return folder / f"{shard_name(number)}.jsonl"
