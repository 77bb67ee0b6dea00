"""Published weights by exact file: what it is, size, SHA-256, licence, folder and address. Reads no network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .weights import WeightsError, read_header

RECORD = ".sha256"  # beside a file whose hash nobody published: the one it had when it came, as the program sha256sum writes it
CHUNK = 2**22  # bytes read at once


@dataclass(frozen=True)
class PublishedFile:
    """One file of a repository on Hugging Face. What could not be learnt is None, and said to be unknown."""

    name: str  # as it is called in ComfyUI's folder, which may differ from `file`
    what: str
    folder: str  # below ComfyUI's models folder
    repository: str
    file: str
    about: str  # rounded size, for people
    size: int | None
    sha256: str | None
    licence: str
    also_published: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of other editions under this name -> repository

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.file}"

    @property
    def line(self) -> str:
        """All that a person needs to fetch the file, on one line."""
        size = f"{self.size:,} bytes" if self.size else f"about {self.about}, exact size unknown until downloaded"
        return (
            f"{self.name} ({self.what}): {size}; licence {self.licence}; SHA-256 {self.sha256 or 'unknown until downloaded'}; "
            f"folder models/{self.folder}; {self.url}"
        )

    @property
    def as_template_model(self) -> dict[str, str]:
        """The entry of a workflow's `models` metadata, by which ComfyUI's frontend offers the download."""
        entry = {"name": self.name, "url": self.url, "directory": self.folder}
        return entry | ({"hash": self.sha256, "hash_type": "SHA256"} if self.sha256 else {})


def read_registry(path: Path) -> list[PublishedFile]:
    """The files a system's JSON names."""
    return [PublishedFile(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def find_published(files: Sequence[PublishedFile], name: str) -> PublishedFile:
    """The file of that name; a WeightsError names the known ones."""
    found = next((file for file in files if file.name == name), None)
    if found is None:
        raise WeightsError(f"No published file is named {name!r}; known are {', '.join(file.name for file in files)}.")
    return found


def find_on_disk(file: PublishedFile, folders: Sequence[Path]) -> Path | None:
    """The file in one of several models folders, at its place or in a folder below it; hidden ones hold unfinished downloads."""
    for folder in folders:
        place = folder / file.folder / file.name
        if place.is_file():
            return place
        home = folder / file.folder
        found = sorted(path for path in home.glob(f"**/{file.name}") if path.is_file())
        below = [path for path in found if not any(part.startswith(".") for part in path.relative_to(home).parts)]
        if below:
            return below[0]
    return None


def verify(file: PublishedFile, path: Path, on_progress: Callable[[int], None] = lambda done: None) -> str:
    """What a file on disk is worth, in one sentence; WeightsError if it is cut off, or is not the published one."""
    read_header(path)
    size = path.stat().st_size
    if file.size is not None and size != file.size and not file.also_published:
        raise WeightsError(f"{path} has {size:,} bytes, the published file {file.size:,}; fetch it again: {file.line}")
    found = hash_file(path, on_progress)
    if found == file.sha256:
        return f"{path} is the published file."
    if found in file.also_published:
        return f"{path} is the edition published in {file.also_published[found]}."
    wanted = file.sha256 or read_record(path)
    if wanted is None:
        return f"{path} is whole; nobody published a hash to compare its SHA-256 with: {found}."
    if found == wanted:
        return f"{path} is as it was downloaded."
    raise WeightsError(f"{path} has the SHA-256 {found}, wanted {wanted}; fetch it again: {file.line}")


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
    """The hash that was written down when the file came."""
    record = path.with_name(path.name + RECORD)
    return record.read_text(encoding="utf-8").split()[0] if record.is_file() else None


def write_record(path: Path, sha256: str) -> None:
    path.with_name(path.name + RECORD).write_text(f"{sha256}  {path.name}\n", encoding="utf-8")
