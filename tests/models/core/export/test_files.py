"""Writing whole files: folders are made, failures are one sentence, nothing half-written stays."""

import errno
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from spatialweave.models.core.export.files import ExportError, write_file


def test_folders_are_made_and_the_file_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    assert write_file(path, b"one") == path
    write_file(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["c.bin"]


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x.png", tmp_path / "file" / "deeper" / "x.png"):
        with pytest.raises(
            ExportError,
            match=(
                "Cannot write .*x.png: a part of this path is a file, not a folder; choose another folder.$"
            ),
        ):
            write_file(path, b"data")


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ExportError, match="a folder has this name") as caught:
        write_file(tmp_path / "x.png", b"data")
    assert str(caught.value).startswith("Cannot write")
    assert os.listdir(tmp_path) == ["x.png"]


def test_a_name_too_long(tmp_path):
    with pytest.raises(ExportError, match="name is too long"):
        write_file(tmp_path / ("x" * 300), b"data")


def test_windows_vaguer_numbers_get_the_same_words(tmp_path, monkeypatch):
    """There a folder in the way is "access denied", and a long name "not found"."""
    (tmp_path / "x.png").mkdir()
    for name, number, said in (
        ("x.png", errno.EACCES, "a folder has this name"), ("x" * 251, errno.ENOENT, "name is too long"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ExportError, match=said):
            patch.setattr(os, "replace", Mock(side_effect=OSError(number, "said by the system")))
            write_file(tmp_path / name, b"data")
    assert os.listdir(tmp_path) == ["x.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_full_disk_leaves_the_older_file(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"older")
    (tmp_path / "x.png.part").symlink_to("/dev/full")
    with pytest.raises(ExportError, match="the disk is full; free some space"):
        write_file(path, b"data")
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["x.png"]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX limits the size of a process's files")
def test_a_write_that_stops_in_the_middle_leaves_nothing(tmp_path):
    """The kernel itself cuts the file after 1000 bytes, in a process of its own."""
    script = (
        "import resource, sys\n"
        "from spatialweave.models.core.export.files import ExportError, write_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_file(sys.argv[1], b'x' * 5000)\n"
        "except ExportError as error:\n    sys.exit(str(error))\n"
    )
    call = [sys.executable, "-B", "-c", script, str(tmp_path / "x.bin")]  # B: or it cuts bytecode, too
    ran = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 1
    assert "the file would be larger than this system allows" in ran.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "a\0b"])
def test_what_is_no_name_of_a_file_is_refused_as_a_file_that_cannot_be_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="Cannot write"):
        write_file(name, b"x")
    assert list(tmp_path.iterdir()) == []
