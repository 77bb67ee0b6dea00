"""The pictures below a folder, with their captions, as people's disks have them: any spelling of a suffix, hidden files, links."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...core.text_files import TextFileError, read_text, show_path
from ...core.training.shard_sources import Source

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTION = ".txt"
PASSED_OVER = "__macosx"  # a folder that macOS puts into archives; what it hides elsewhere begins with a dot


@dataclass
class Listing:
    """Pictures below a folder, each with its caption's file if there is one."""

    pictures: list[tuple[Path, Path | None]] = field(default_factory=list)
    hidden: int = 0  # pictures whose names say that a system put them there
    closed: list[Path] = field(default_factory=list)  # folders that may not be read


def list_pictures(folder: Path) -> Listing:
    """In the order of their names, as bytes; links are followed, no folder is read twice."""
    found = Listing()
    for home, files in walk(folder, found.closed):
        captions = find_captions(files)
        hidden_home = any(is_hidden(part) for part in home.relative_to(folder).parts)
        for name in files:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in PICTURES:
                continue
            if hidden_home or is_hidden(name):
                found.hidden += 1
                continue
            found.pictures.append((home / name, home / captions[stem] if stem in captions else None))
    found.pictures.sort(key=lambda pair: [os.fsencode(part) for part in pair[0].parts])
    return found


def walk(folder: Path, closed: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    seen = set()
    for home, folders, files in os.walk(
        folder, followlinks=True, onerror=lambda error: closed.append(Path(error.filename))
    ):
        real = os.path.realpath(home)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # what is reached by two ways is found by the same one every time
        yield Path(home), files


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() == PASSED_OVER


def find_captions(files: list[str]) -> dict[str, str]:
    """Captions by the name they share with a picture; where several differ in the case of their suffix, the one in lower case."""
    texts = [name for name in files if name.lower().endswith(CAPTION) and not is_hidden(name)]
    return {
        os.path.splitext(name)[0]: name for name in sorted(texts, key=lambda name: name.endswith(CAPTION))
    }


def as_source(folder: Path, picture: Path, text: Path | None) -> Source:
    """A picture as a sample to be written. Its caption is only written down: with another one nothing is estimated anew."""
    name = picture.relative_to(folder).as_posix()
    words = (text or picture.with_suffix(CAPTION)).relative_to(folder)
    entry = {"source": show_path(name), "caption": ""}
    try:
        if not stat.S_ISREG(picture.stat().st_mode):
            return Source(name, {}, fault="it is no file", entry=entry, words=show_path(words))
        entry["caption"] = read_caption(text) if text else ""
        fault = ""
    except (OSError, TextFileError) as error:
        fault = describe(error, picture)
    return Source(name, {show_path(name): picture}, entry=entry, fault=fault, words=show_path(words))


def describe(error: Exception, picture: Path) -> str:
    """Why a picture has to be left out."""
    if isinstance(error, OSError):
        what = "it" if error.filename in (None, str(picture)) else f"its caption {show_path(error.filename)}"
        return f"{what} cannot be read: {error.strerror or error}"
    return f"its caption cannot be read: {error}"


def read_caption(path: Path) -> str:
    return read_text(path).replace("\r\n", "\n").strip()
