"""Text files: JSON, JSON lines and captions, as any editor on any system saves them.

UTF-8 with or without a byte order mark. Lines end at a line feed only: U+2028, U+0085 and form feeds, which
``str.splitlines`` also cuts at, are ordinary characters of a caption. Every error names the file.
"""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class TextFileError(ValueError):
    """A text file that cannot be read as what it should be.

    One message names the file, the place and what to do.
    """


def read_text(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file without its byte order mark.

    OSError if it cannot be opened, TextFileError if it is not UTF-8.
    """
    return decode_text(Path(path).read_bytes(), source=show_path(path))


def decode_text(data: bytes, *, source: str) -> str:
    """Bytes as text; ``source`` is how a message names them."""
    for mark, name in _OTHER_MARKS:
        if data.startswith(mark):
            raise TextFileError(f"Expected UTF-8 text in {source}, got {name}. Save it as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextFileError(
            f"Expected UTF-8 text in {source}, got byte 0x{data[error.start]:02x} in line {line}. Save it as "
            "UTF-8."
        ) from error
    if "\0" in text:  # Latin letters in UTF-16 without a mark are valid UTF-8, each with a NUL
        raise TextFileError(
            f"Expected UTF-8 text in {source}, got NUL bytes, as UTF-16 has them. Save it as UTF-8."
        )
    return text


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file; TextFileError names the file and the line of what is not JSON."""
    return parse_json(read_text(path), source=show_path(path))


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """As :func:`read_json`, of a file that holds one object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise TextFileError(
            f"Expected a JSON object in {show_path(path)}, got {_kind(value)}. Write it as {{...}}."
        )
    return value


def parse_json(text: str, *, source: str) -> Any:
    """The value of a JSON text; ``source`` is how a message names it."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise TextFileError(
            f"Expected JSON in {source}, got values nested too deeply to read. Flatten it."
        ) from error
    except ValueError as error:  # besides JSONDecodeError: an integer of more digits than Python reads
        reason = getattr(error, "msg", error)
        where = (
            f" in line {error.lineno}, column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise TextFileError(
            f"Expected JSON in {source}, got text that is not JSON{where} ({reason}). Correct it."
        ) from error


def read_json_lines(path: str | os.PathLike) -> list[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line of a JSON lines file that is not blank."""
    entries = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        source = f"line {number} of {show_path(path)}"
        entry = parse_json(line, source=source)
        if not isinstance(entry, dict):
            raise TextFileError(
                f"Expected a JSON object in {source}, got {_kind(entry)}. Write one object a line."
            )
        entries.append((number, entry))
    return entries


def show_path(path: str | os.PathLike) -> str:
    """A path as printable text: bytes of a file name that are not UTF-8 are shown as \\xNN, so that any
    stream can write it.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
