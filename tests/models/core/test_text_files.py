"""Text of other people's editors: byte order marks, other encodings, line ends, JSON that is none."""

import json
import os
import sys

import pytest

from spatialweave.models.core.text_files import (
    TextFileError,
    read_json,
    read_json_lines,
    read_json_object,
    read_text,
    show_path,
)


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_reads_with_and_without_a_mark(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "Füße \u8d64\u3044 \U0001f534".encode(encoding))
    assert read_text(path) == "Füße \u8d64\u3044 \U0001f534"


@pytest.mark.parametrize(
    "encoding, said",
    [("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("cp1252", "byte 0xe9 in line 2"), ("shift_jis", "byte 0x")]
)
def test_other_encodings_are_refused_by_file(tmp_path, encoding, said):
    text = "one\n\u30ab" if encoding == "shift_jis" else "one\ncafé"
    with pytest.raises(TextFileError, match=said) as error:
        read_text(write(tmp_path / "caption.txt", text.encode(encoding)))
    assert "caption.txt" in str(error.value) and "Save it as UTF-8." in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_encodings_without_a_mark_are_refused(tmp_path, encoding):
    """Their Latin letters are valid UTF-8, with a NUL beside each."""
    with pytest.raises(
        TextFileError,
        match="Expected UTF-8 text in .*caption.txt, got NUL bytes, as UTF-16 has them. Save it as UTF-8.",
    ):
        read_text(write(tmp_path / "caption.txt", "a red ball".encode(encoding)))


def test_lines_end_at_line_feeds_only(tmp_path):
    captions = ["a\u2028b", "c\u0085d", "e\x0cf", "g\u2029h"]
    lines = "\r\n".join(json.dumps({"caption": caption}, ensure_ascii=False) for caption in captions)
    entries = read_json_lines(write(tmp_path / "manifest.jsonl", ("\ufeff" + lines + "\r\n\r\n").encode()))
    assert [entry["caption"] for _, entry in entries] == captions
    assert [number for number, _ in entries] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "line 1"), ("{}\n{", "line 2"), ("[" * 100_000, "nested too deeply"), ("9" * 5000, "not JSON"),
        ("", "line 1"),
    ]
)
def test_what_is_not_json_is_refused_by_file(tmp_path, text, said):
    with pytest.raises(TextFileError, match=said) as error:
        read_json(write(tmp_path / "recipe.json", text.encode()))
    assert "recipe.json" in str(error.value)


@pytest.mark.parametrize(
    "text, kind",
    [("[]", "a list"), ("3", "a number"), ('"x"', "a string"), ("null", "null"), ("true", "a truth value")]
)
def test_an_object_is_asked_for(tmp_path, text, kind):
    path = write(tmp_path / "a.json", text.encode())
    with pytest.raises(TextFileError, match=f"Expected a JSON object in .*a.json, got {kind}"):
        read_json_object(path)
    with pytest.raises(TextFileError, match=f"line 1 of .*a.json, got {kind}"):
        read_json_lines(path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_names_that_are_no_utf8_can_be_printed():
    assert show_path(os.fsdecode("\u7d75".encode("shift_jis") + b".png")).encode("utf-8") == b"\\x8aG.png"
