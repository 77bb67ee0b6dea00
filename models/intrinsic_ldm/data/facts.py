"""How a dataset folder was written (`dataset.json`), and whether a later run means the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.export.files import write_file
from ...core.text_files import TextFileError, read_json_object, show_path
from .sources import NAMED, Stamp, stamp_file

DATASET = "dataset.json"
FINISHED, FILES, VERSION = "finished", "files", "version"
ABOUT = "about"  # names, for people: renamed, a folder is still the same


def read_facts(folder: Path) -> dict[str, Any]:
    """What the folder says of itself, {} for a new one; ValueError where it holds something else."""
    path = folder / DATASET
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{show_path(folder)} holds other files and no {DATASET}; choose an empty folder for the dataset.")
        return {}
    try:
        return read_json_object(path)
    except TextFileError as error:
        raise ValueError(f"{show_path(path)} does not say what its folder holds ({error}); choose another folder.") from error


def check_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """ValueError names each setting and each file in which a folder's earlier run differs."""
    found = read_facts(folder)
    if not found:
        return
    if found.get(VERSION) != facts.get(VERSION):
        raise ValueError(
            f"Expected {show_path(folder / DATASET)} of version {facts.get(VERSION)}, got {found.get(VERSION)!r}: the folder does not say "
            "which files it was made from. A finished one trains as it is; choose another folder to write to."
        )
    before, now, compared = flatten(found), flatten(facts), facts.keys() - {ABOUT}
    changed = [key for key in sorted(now.keys() | before.keys()) if before.get(key) != now.get(key) and key.split(".")[0] in compared]
    if changed:
        named = ", ".join(describe_change(key, before, now) for key in changed[:NAMED])
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise ValueError(f"{show_path(folder)} was begun with {named}{more}; give the same to go on, or choose another folder.")


def check_source(folder: Path, facts: Mapping[str, Any]) -> None:
    """ValueError where a folder was made from another one, which it would lose."""
    before, now = (flatten(found).get(f"{ABOUT}.source") for found in (read_facts(folder), facts))
    if before != now:
        raise ValueError(
            f"Expected the samples of {before!r}, from which {show_path(folder)} was made, got {now!r}, which holds none of them. Choose "
            "another folder to write to."
        )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dots between the names; of a file's stamp only the content counts."""
    if prefix.startswith(f"{FILES}."):
        return {prefix: value[-1] if isinstance(value, list) and value else value}
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {key: each for name, part in value.items() for key, each in flatten(part, f"{prefix}.{name}" if prefix else str(name)).items()}


def describe_change(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One difference in words, with no hash in them."""
    if key.startswith(f"{FILES}."):
        what = "without" if key not in before else "with" if key not in now else "another"
        return f"{what} {key.removeprefix(f'{FILES}.')}"
    return f"{key} {before.get(key)!r}, not {now.get(key)!r}"


def is_finished(folder: Path) -> bool:
    return bool(read_facts(folder).get(FINISHED))


def write_facts(folder: Path, facts: Mapping[str, Any], *, finished: bool) -> None:
    write_file(folder / DATASET, (json.dumps({**facts, FINISHED: finished}, indent=1) + "\n").encode())


def stamp_files(folder: Path, files: Iterable[tuple[str, Path]]) -> dict[str, Stamp | None]:
    """The stamps of what a folder is made with, by what they are called; what its last run read is not read again."""
    known = read_facts(folder).get(FILES)
    known = known if isinstance(known, dict) else {}
    return {name: stamp_file(path, known.get(name)) for name, path in files}
