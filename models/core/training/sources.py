"""What must be unchanged when a run is resumed: its recipe, and by content the files that it names.

    OUTPUT/sources.json    {"data.folder": {"manifest.jsonl": fingerprint, ...}, ...}, written when a run
                           begins
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..text_files import TextFileError, read_json_lines, read_json_object, show_path
from .checkpoint import write_json
from .data import MANIFEST, READERS
from .recipe import CHANGEABLE, Recipe

SOURCES = "sources.json"
# keys of a recipe that name files
PATHS = ("folder", "codec", "vae", "maps", "pairs", "base", "weights", "text", "perceptual_weights")
BESIDE = "empty_context.safetensors"  # in a dataset folder, not named by its manifest
PART, PARTS = 2**16, 64  # bytes per sampled block, blocks per file: it is read whole up to 4 MB
MOST_READ = 50_000  # files of a folder that are read; of more, only the sizes are compared
NAMED = 3  # files in one message


def check_same_recipe(before: Mapping[str, Any], now: Mapping[str, Any], latest: Path) -> None:
    # a checkpoint from before a key was known has its default
    before = {each.name: each.default for each in fields(Recipe)} | dict(before)
    changed = [key for key in now if key not in CHANGEABLE and before.get(key) != now[key]]
    if changed:
        named = ", ".join(f"{key} (was {before.get(key)!r}, is {now[key]!r})" for key in changed)
        raise ValueError(
            f"Expected the recipe of {latest.name} to resume from, got changes: {named}. A resumed run may "
            f"only change {', '.join(CHANGEABLE)}."
        )


def fingerprint_sources(recipe: Recipe) -> dict[str, dict[str, str]]:
    """The files of each path in a recipe: fingerprints by the file's name, in a folder relative to it."""
    found = {}
    for part in ("model", "data", "loss"):
        for key, value in getattr(recipe, part).items():
            if key in PATHS and isinstance(value, str) and value and Path(value).exists():
                found[f"{part}.{key}"] = fingerprint_path(Path(value))
    return found


def fingerprint_path(path: Path) -> dict[str, str]:
    """Fingerprints of a file, of a dataset folder's files, or of all weights and settings below another
    folder.
    """
    if path.is_file():
        return {path.name: fingerprint_file(path)}
    names = sorted(set(list_dataset(path) if (path / MANIFEST).is_file() else list_weights(path)))
    if len(names) > MOST_READ:
        return {name: f"{os.path.getsize(path / name)}" for name in names}
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(fingerprint_file, [path / name for name in names]), strict=True))


def list_dataset(folder: Path) -> Iterator[str]:
    """The manifest, and the files its lines name."""
    yield MANIFEST
    if (folder / BESIDE).is_file():
        yield BESIDE
    try:
        entries = [entry for _, entry in read_json_lines(folder / MANIFEST)]
    except TextFileError:  # the reader of the data will report it
        return
    named = {
        value
        for entry in entries
        for key, value in entry.items()
        if isinstance(value, str) and "caption" not in key
    }
    for name in named:
        if "\n" not in name and len(name) < 1000 and Path(name).suffix and (folder / name).is_file():
            yield name
            beside = Path(name).with_suffix(".json").as_posix()  # in which a depth PNG's scale may be
            if (folder / beside).is_file():
                yield beside


def list_weights(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if (
            path.suffix in (".safetensors", ".json", ".txt", ".model")
            and path.is_file()
            and not any(p.startswith(".") for p in name.parts)
        ):
            yield name.as_posix()


def fingerprint_file(path: Path) -> str:
    """A short hash of a file's size and of evenly spread parts of it: other weights or images differ in all
    of them.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=12)
    with path.open("rb") as file:
        if size <= PART * PARTS:
            digest.update(file.read())
        else:
            for number in range(PARTS):
                file.seek(number * (size - PART) // (PARTS - 1))
                digest.update(file.read(PART))
    return digest.hexdigest()


def write_sources(output: Path, recipe: Recipe) -> None:
    write_json(output / SOURCES, fingerprint_sources(recipe))


def check_sources(output: Path, recipe: Recipe) -> None:
    """ValueError names the files that differ from those at the start of the run in this folder.

    A run without such a list is accepted.
    """
    path = output / SOURCES
    if not path.is_file():
        return
    before: Mapping[str, Any] = read_json_object(path)
    for key, now in fingerprint_sources(recipe).items():
        then = before.get(key)
        changed = (
            sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
            if isinstance(then, dict)
            else []
        )
        if changed:
            more = f" and {len(changed) - NAMED:,} more" if len(changed) > NAMED else ""
            part, _, name = key.partition(".")
            where = f"{key} ({show_path(getattr(recipe, part)[name])})"
            raise ValueError(
                f"Expected the files with which the run in {show_path(output)} began, got others in "
                f"{where}: {', '.join(changed[:NAMED])}{more}. Put them back to resume, or start anew in "
                "another output folder."
            )
