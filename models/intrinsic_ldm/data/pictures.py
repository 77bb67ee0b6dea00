"""The image files below a folder with their captions: suffixes in any case, hidden files, symbolic links."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...core.text_files import TextFileError, read_text, show_path
from ...core.training.shard_sources import Source

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTION = ".txt"
PASSED_OVER = "__macosx"  # a folder that macOS adds to archives; its other hidden files begin with a dot


@dataclass
class Listing:
    """Image files below a folder, each with its caption file, if there is one."""

    images: list[tuple[Path, Path | None]] = field(default_factory=list)
    hidden: int = 0  # image files with names that mark them as hidden by the system
    closed: list[Path] = field(default_factory=list)  # folders without read permission


def list_images(folder: Path) -> Listing:
    """Sorted by name as bytes; symbolic links are followed, no folder is listed twice."""
    listing = Listing()
    for home, files in walk(folder, listing.closed):
        captions = find_captions(files)
        hidden_home = any(is_hidden(part) for part in home.relative_to(folder).parts)
        for name in files:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in IMAGES:
                continue
            if hidden_home or is_hidden(name):
                listing.hidden += 1
                continue
            listing.images.append((home / name, home / captions[stem] if stem in captions else None))
    listing.images.sort(key=lambda pair: [os.fsencode(part) for part in pair[0].parts])
    return listing


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
        folders.sort()  # so that a folder with two paths is always listed under the same one
        yield Path(home), files


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() == PASSED_OVER


def find_captions(files: list[str]) -> dict[str, str]:
    """Caption files by the stem shared with an image; of suffixes in several cases, the lower-case one."""
    texts = [name for name in files if name.lower().endswith(CAPTION) and not is_hidden(name)]
    return {
        os.path.splitext(name)[0]: name for name in sorted(texts, key=lambda name: name.endswith(CAPTION))
    }


def as_source(folder: Path, image: Path, text: Path | None) -> Source:
    """An image as a sample to write. The caption is stored only: a new one causes no new estimation."""
    name = image.relative_to(folder).as_posix()
    caption_file = show_path((text or image.with_suffix(CAPTION)).relative_to(folder))
    entry = {"source": show_path(name), "caption": ""}
    try:
        if not stat.S_ISREG(image.stat().st_mode):
            return Source(name, {}, fault="it is no file", entry=entry, words=caption_file)
        entry["caption"] = read_caption(text) if text else ""
        fault = ""
    except (OSError, TextFileError) as error:
        fault = explain_unreadable(error, image)
    return Source(name, {show_path(name): image}, entry=entry, fault=fault, words=caption_file)


def explain_unreadable(error: Exception, image: Path) -> str:
    """The reason why an image is skipped."""
    if isinstance(error, OSError):
        what = "it" if error.filename in (None, str(image)) else f"its caption {show_path(error.filename)}"
        return f"{what} cannot be read: {error.strerror or error}"
    return f"its caption cannot be read: {error}"


def read_caption(path: Path) -> str:
    return read_text(path).replace("\r\n", "\n").strip()
