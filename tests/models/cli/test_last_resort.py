"""Whatever a user types, names or closes, a command ends in one sentence and an exit code: in this process,
and in real ones."""

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import types
import zlib

import pytest

from spatialweave.models.cli import console as cli
from spatialweave.models.cli import demo
from spatialweave.models.cli import last_resort as cli_net

ODD_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1e999",
    str(2**70),
    str(-(2**70)),
    "9" * 6000,
    "",
    " ",
    "x",
    "0x10",
    "\u0661\ud800",
)
POSIX = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")


def list_parsers(parser, words=()):
    for group in parser._subparsers._group_actions if parser._subparsers else ():
        for name, child in group.choices.items():
            yield " ".join((*words, name)), child
            yield from list_parsers(child, (*words, name))


PARSERS = dict(list_parsers(cli.build_parser()))
OPTIONS = [
    (name, action)
    for name, parser in PARSERS.items()
    for action in parser._actions
    if action.type is not None
]


def run(*arguments, cwd, **more):
    """A command in a process of its own."""
    settings = {"capture_output": True, "timeout": 120} | more
    settings["env"] = {**os.environ, "OMP_NUM_THREADS": "1", **more.get("env", {})}
    return subprocess.run(
        # B: where a file may not grow, Python would cut the bytecode of what it imports
        [sys.executable, "-PB", "-m", "spatialweave.models.cli", *arguments],
        cwd=cwd,
        check=False,
        **settings,
    )


def last_line(done):
    said = done.stderr.decode()
    assert "Traceback" not in said, said
    return said.strip().split("\n")[-1].split("\r")[-1]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option[0]} {option[1].dest}")
def test_every_option_with_a_type_refuses_what_is_no_value_of_it(option):
    """Nothing but ArgumentTypeError, which argparse shows with the usage; no infinite and no enormous number
    comes through."""
    _, action = option
    for text in ODD_NUMBERS:
        try:
            value = action.type(text)
        except argparse.ArgumentTypeError as error:
            assert str(error).startswith("Expected ") and len(str(error)) < 200
        else:
            assert not isinstance(value, int | float) or abs(value) < 2**64 and value == value


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option[0]} {option[1].dest}")
def test_the_default_of_an_option_is_a_value_of_it(option):
    _, action = option
    if action.default not in (None, argparse.SUPPRESS):
        assert action.type(str(action.default)) == action.default


def test_a_number_out_of_its_limits_is_a_usage_error_that_names_the_option(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--steps", "0"])
    assert ended.value.code == 2
    assert "argument --steps: Expected a whole number from 1 to 10000, got '0'." in capsys.readouterr().err


def test_an_empty_path_is_not_the_current_folder(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--output", ""])
    assert "Expected a path, got an empty one" in capsys.readouterr().err


FAULTS = [
    TypeError("unsupported operand"),
    KeyError("depth"),
    IndexError("out of range"),
    AttributeError("no attribute"),
    ZeroDivisionError("by zero"),
    OverflowError("too large"),
    RuntimeError("sizes differ"),
    RecursionError("too deep"),
    AssertionError(),
    zlib.error("bad data"),
    struct.error("short"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    EOFError(),
    StopIteration(),
    NotImplementedError(),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_what_nobody_foresaw_is_a_sentence_with_command_file_and_remedy(error, tmp_path, monkeypatch, capsys):
    """The reader stands in a module of the pack: there the file that was in hand is looked for."""
    file = tmp_path / "broken.npz"
    file.write_bytes(b"")

    def read(path, error):
        raise error

    read = types.FunctionType(read.__code__, {"__name__": "spatialweave.models.core.export.npz"})
    monkeypatch.setattr(demo, "_run_demo", lambda options: read(file, error))
    assert cli.main(["demo"]) == cli_net.UNFORESEEN
    said = capsys.readouterr().err
    assert said.startswith(
        f"spatialweave demo: an unforeseen {type(error).__name__} while {file} was being read ("
    )
    assert said.count("\n") == 1 and "SPATIALWEAVE_DEBUG=1" in said


def test_the_trace_is_shown_when_it_is_asked_for(monkeypatch, capsys):
    def fail(options):
        raise TypeError("the very fault")

    monkeypatch.setattr(demo, "_run_demo", fail)
    monkeypatch.setenv("SPATIALWEAVE_DEBUG", "1")
    assert cli.main(["demo"]) == cli_net.UNFORESEEN
    said = capsys.readouterr().err
    assert "Traceback" in said and "in fail" in said and said.strip().endswith("for a report.")


@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 8 TiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_full_memory_is_called_that(error, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setattr(demo, "_run_demo", fail)
    assert cli.main(["demo"]) == cli_net.REFUSED
    assert "the memory is full" in capsys.readouterr().err


def test_a_refusal_keeps_its_own_words_and_its_exit_code(tmp_path):
    done = run("train", "nothing.json", cwd=tmp_path)
    assert done.returncode == cli_net.REFUSED and "nothing.json" in last_line(done)


def png(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(10)))
        + chunk(b"IEND", b"")
    )


RECIPE = {"system": "tiny_codec", "steps": 1}
FILES = {  # a family of faults: (the file's name, its bytes, the command before the name)
    "a bomb": ("bomb.png", png(60000, 60000), ("demo", "--image")),
    "a cut picture": ("cut.png", png(40, 40)[:50], ("demo", "--image")),
    "no archive": ("none.npz", b"PK\x03\x04" + bytes(30), ("demo", "--depth")),
    "an EXR without end": ("end.exr", struct.pack("<2I", 20000630, 2) + b"channels", ("demo", "--depth")),
    "another encoding": ("latin.json", json.dumps(RECIPE).encode("utf-16"), ("train",)),
    "a list for an object": ("list.json", b"[1, 2]", ("train",)),
    "nested too deeply": ("deep.json", b"[" * 100000, ("train",)),
    "a number of many digits": (
        "digits.json",
        b'{"system": "tiny_codec", "steps": 1' + b"0" * 6000 + b"}",
        ("train",),
    ),
    "a value of another type": (
        "type.json",
        json.dumps(RECIPE | {"betas": 3, "lr_scale": [1]}).encode(),
        ("train",),
    ),
    "not a number": ("nan.json", json.dumps(RECIPE | {"lr": float("nan")}).encode(), ("train",)),
    "data of another type": (
        "data.json",
        json.dumps(RECIPE | {"data": {"folder": [1]}, "output": "out"}).encode(),
        ("train",),
    ),
    "a pickle": ("old.safetensors", b"\x80\x02}q\x00." * 5, ("demo", "--weights")),
    "a header that lies": ("lie.safetensors", struct.pack("<Q", 2**62) + b"{}", ("demo", "--weights")),
    "weights that are a folder": ("", b"", ("demo", "--weights")),
    "a workflow of the browser": (
        "ui.json",
        b'{"nodes": []}',
        ("intrinsics", "build", "pictures", "out", "--workflow"),
    ),
    "a workflow of numbers": (
        "numbers.json",
        b'{"1": 2}',
        ("intrinsics", "build", "pictures", "out", "--workflow"),
    ),
}


IN_ANOTHER_PROCESS = (
    "a bomb",
    "a value of another type",
    "nested too deeply",
    "a header that lies",
)  # the others only cost time there
FAMILIES = [
    pytest.param(family, marks=pytest.mark.slow if family in IN_ANOTHER_PROCESS else ()) for family in FILES
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_broken_file_of_each_family_is_refused_by_name(family, tmp_path, monkeypatch, capsys):
    name, data, command = FILES[family]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(4, 4))
    if name:
        (tmp_path / name).write_bytes(data)
    if family in IN_ANOTHER_PROCESS:
        done = run(*command, name or ".", cwd=tmp_path)
        code, said = done.returncode, last_line(done)
    else:
        monkeypatch.chdir(tmp_path)
        code, said = cli.main([*command, name or "."]), capsys.readouterr().err.strip().split("\n")[-1]
    assert code == cli_net.REFUSED, said
    assert (
        said.startswith(f"spatialweave {command[0]}: ")
        and (name or "network.safetensors") in said
        and len(said.split()) > 5
    )


@pytest.mark.slow
def test_any_terminal_can_show_what_a_command_says(tmp_path):
    """An ASCII terminal: what it lacks is written as an escape."""
    place = tmp_path / "mod\u00e8les" / "vae"
    place.mkdir(parents=True)
    (place / "flux2-vae.safetensors").write_bytes(b"")
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run("weights", "list", "flux2-vae.safetensors", "--models", "mod\u00e8les", cwd=tmp_path, env=env)
    assert done.returncode == 0 and b"there: mod\\xe8les" in done.stdout and not done.stderr


@pytest.mark.slow
@POSIX
def test_a_name_that_is_no_text_is_shown_with_escapes(tmp_path):
    done = run("train", b"odd\xff.json", cwd=tmp_path)
    assert done.returncode == cli_net.REFUSED and "odd\\xff.json" in last_line(done)


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("command", [("weights", "list"), ("demo", "--help")], ids=" ".join)
def test_a_reader_that_leaves_early_ends_a_command_quietly(command, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*command, cwd=tmp_path, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode in (0, cli_net.PIPE_CLOSED) and done.stderr == b""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_behind_standard_output_is_said(tmp_path):
    with open("/dev/full", "wb") as full:
        done = run("weights", "list", cwd=tmp_path, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == cli_net.REFUSED and "standard output: No space left on device" in last_line(
        done
    )


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams_are_no_fault(closed, tmp_path):
    done = run(
        "weights",
        "list",
        cwd=tmp_path,
        preexec_fn=lambda: os.close(closed),
        capture_output=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0


WRITERS = [
    ("demo", "--size", "16x16", "--steps", "1", "--output"),
    ("world", "--scenes", "1", "--size", "16"),
]


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS, ids=lambda words: words[0])
def test_an_output_folder_that_is_a_file_is_refused_by_name(command, tmp_path):
    (tmp_path / "taken").write_text("")
    done = run(*command, "taken", cwd=tmp_path)
    assert done.returncode == cli_net.REFUSED and "taken" in last_line(done)


@pytest.mark.slow
@POSIX
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the superuser may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    done = run("world", "closed/data", "--scenes", "1", "--size", "16", cwd=tmp_path)
    assert done.returncode == cli_net.REFUSED and "closed" in last_line(done)


@pytest.mark.slow
@POSIX
def test_a_disk_that_takes_no_more_is_said_with_the_file(tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = run("world", "data", "--scenes", "1", "--size", "64", cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == cli_net.REFUSED and "Cannot write data" in last_line(done)


@POSIX
def test_ctrl_c_says_that_what_was_written_stays(tmp_path):
    call = [
        sys.executable,
        "-P",
        "-m",
        "spatialweave.models.cli",
        "world",
        "data",
        "--scenes",
        "100000",
        "--size",
        "64",
    ]
    streams = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": os.environ | {"OMP_NUM_THREADS": "1"},
    }
    # as from a terminal: a shell that starts the tests in the background has its children ignore Ctrl-C
    process = subprocess.Popen(
        call, cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **streams
    )
    said = process.stderr.read(60)  # the bar: it is at work
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=60)[1]
    assert (
        process.returncode == cli_net.INTERRUPTED
        and b"spatialweave world: stopped; what was already written stays." in said
    )
    assert b"Traceback" not in said


@pytest.mark.parametrize("action", ["list", "verify"])
def test_a_models_folder_that_is_none_is_refused_by_name(action, tmp_path, capsys):
    assert cli.main(["weights", action, "--models", str(tmp_path / "nowhere")]) == cli_net.REFUSED
    assert "nowhere, which is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [("bench", "kernels"), ("evaluate", "intrinsic_ldm", "--n", "2")], ids=lambda words: words[0]
)
def test_a_device_that_is_not_there_is_refused_before_any_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--device", "nodevice"]) == cli_net.REFUSED
    assert "Expected an available device, such as cpu or cuda, got 'nodevice'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_demo_without_a_depth_is_refused_before_a_file_is_written(tmp_path, capsys):
    assert (
        cli.main(
            [
                "demo",
                "--guidance",
                "1000",
                "--depth-guidance",
                "1000",
                "--steps",
                "1",
                "--size",
                "16x16",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == cli_net.REFUSED
    )
    assert "weaker guidance than 1000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
