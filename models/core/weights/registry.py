"""Published weights by exact file: what it is, size, SHA-256, license, folder and address.

No network access.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..text_files import read_json, read_text, show_path
from .files import WeightsError, read_header

# beside a file whose hash is not published: the one it had when downloaded, in the format of sha256sum
RECORD = ".sha256"
CHUNK = 2**22  # bytes read at once


@dataclass(frozen=True)
class PublishedFile:
    """One file of a repository on Hugging Face. An unknown value is None, and not shown."""

    name: str  # its name in ComfyUI's folder, which may differ from `file`
    what: str
    folder: str  # below ComfyUI's models folder
    repository: str
    file: str
    about: str  # rounded size, for people
    size: int | None
    sha256: str | None
    licence: str
    # SHA-256 of other editions under this name -> repository
    also_published: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.file}"

    @property
    def line(self) -> str:
        """All that is known and needed to download the file, on one line."""
        published = self.file.rpartition("/")[2]
        facts = [
            f"{self.size:,} bytes" if self.size else f"about {self.about}",
            f"licence {self.licence}",
            self.sha256 and f"SHA-256 {self.sha256}",
            f"folder models/{self.folder}",
            published != self.name and f"rename the downloaded {published} to {self.name}",
            self.url,
        ]
        return f"{self.name} ({self.what}): {'; '.join(filter(None, facts))}"

    @property
    def as_template_model(self) -> dict[str, str]:
        """The entry of a workflow's `models` metadata, by which ComfyUI's frontend offers the download."""
        entry = {"name": self.name, "url": self.url, "directory": self.folder}
        return entry | ({"hash": self.sha256, "hash_type": "SHA256"} if self.sha256 else {})


def read_registry(path: Path) -> list[PublishedFile]:
    """The files in a system's JSON; ValueError names an invalid entry."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise WeightsError(
            f"Expected a list of published files in {show_path(path)}, got something else. Write it as [...]."
        )
    return [
        _read_entry(entry, f"entry {number} of {show_path(path)}") for number, entry in enumerate(entries, 1)
    ]


def _read_entry(entry: Any, where: str) -> PublishedFile:
    known = {each.name: each for each in fields(PublishedFile)}
    if not isinstance(entry, dict) or not known.keys() - {"also_published"} <= entry.keys() <= known.keys():
        raise WeightsError(f"Expected an object with {', '.join(known)} as {where}. Fetch the pack again.")
    fine = {
        name: isinstance(entry[name], str) and bool(entry[name])
        for name in entry.keys() - {"size", "sha256", "also_published"}
    }
    fine["size"] = entry["size"] is None or (type(entry["size"]) is int and entry["size"] > 0)
    hashes = entry.get("also_published", {})
    fine["also_published"] = isinstance(hashes, dict) and all(
        is_hash(key) and isinstance(name, str) for key, name in hashes.items()
    )
    fine["sha256"] = entry["sha256"] is None or is_hash(entry["sha256"])
    wrong = sorted(name for name, is_fine in fine.items() if not is_fine)
    if wrong:
        raise WeightsError(
            f"Expected another kind of {wrong[0]} in {where}, got {str(entry[wrong[0]])[:80]!r}. Fetch the "
            "pack again."
        )
    return PublishedFile(**entry)


def is_hash(text: Any) -> bool:
    """Whether this is a SHA-256 in hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def find_published(files: Sequence[PublishedFile], name: str) -> PublishedFile:
    """The file of that name; a WeightsError lists the names."""
    found = next((file for file in files if file.name == name), None)
    if found is None:
        raise WeightsError(
            f"Expected one of the published files {', '.join(file.name for file in files)}, got {name!r}. "
            "Choose one of them."
        )
    return found


def find_on_disk(file: PublishedFile, folders: Sequence[Path]) -> Path | None:
    """The file in one of several models folders, at its place or in a folder below it.

    Hidden ones hold unfinished downloads.
    """
    for folder in folders:
        place = folder / file.folder / file.name
        if place.is_file():
            return place
        home = folder / file.folder
        found = sorted(path for path in home.glob(f"**/{glob.escape(file.name)}") if path.is_file())
        below = [
            path for path in found if not any(part.startswith(".") for part in path.relative_to(home).parts)
        ]
        if below:
            return below[0]
    return None


def verify(file: PublishedFile, path: Path, on_progress: Callable[[int], None] = lambda done: None) -> str:
    """The state of a file on disk, in one sentence.

    WeightsError if it is incomplete, or is not the published one.
    """
    read_header(path)
    size = path.stat().st_size
    if file.size is not None and size != file.size and not file.also_published:
        raise WeightsError(
            f"Expected {file.size:,} bytes in {path}, the size of the published file, got {size:,}. "
            f"Download it again: {file.line}"
        )
    found = hash_file(path, on_progress)
    if found == file.sha256:
        return f"{path} is the published file."
    if found in file.also_published:
        return f"{path} is the edition published in {file.also_published[found]}."
    expected = file.sha256 or read_record(path)
    if expected is None:
        return f"{path} is complete; no hash is published to compare its SHA-256 with: {found}."
    if found == expected:
        return f"{path} is as it was downloaded."
    raise WeightsError(
        f"Expected the SHA-256 {expected} of {path}, got {found}. Download it again: {file.line}"
    )


def hash_file(path: Path, on_progress: Callable[[int], None] = lambda done: None) -> str:
    """The SHA-256 of a file; `on_progress` gets the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_progress(done)
    return digest.hexdigest()


def read_record(path: Path) -> str | None:
    """The hash that was recorded when the file was downloaded; WeightsError if the record holds none."""
    record = path.with_name(path.name + RECORD)
    if not record.is_file():
        return None
    found = (read_text(record).split() or [""])[0].lower()
    if not is_hash(found):
        raise WeightsError(
            f"Expected a SHA-256 of 64 digits in {show_path(record)}, got {found[:80]!r}. Delete that file, "
            "or correct it."
        )
    return found


def write_record(path: Path, sha256: str) -> None:
    path.with_name(path.name + RECORD).write_text(f"{sha256}  {path.name}\n", encoding="utf-8")
