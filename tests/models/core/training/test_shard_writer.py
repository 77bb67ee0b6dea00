"""Dataset folders written shard by shard: stopped and resumed, sources that change, samples left out, several
processes.
"""

import contextlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.shard_sources import Source, stamp_files
from spatialweave.models.core.training.shard_writer import write_folder
from spatialweave.models.core.training.shards import ShardFolder


def write_numbers(folder, log=None):
    """A shard holds the numbers in its samples' names; "x..." cannot be written."""

    def write(name, members, state):
        if log is not None:
            log.append([member.name for member in members])
        taken = [int(member.name) for member in members if not member.name.startswith("x")]
        if taken:
            save_file({"x": torch.tensor(taken)}, folder / f"{name}.safetensors")
        return ["it has no number" if member.name.startswith("x") else "" for member in members]

    return write


def named(*names, files=None, **options):
    return [Source(str(name), {str(name): files / str(name)} if files else {}, **options) for name in names]


@pytest.fixture
def numbers(tmp_path):
    """numbers(**changes) -> a summary; the shards that were written are in numbers.log."""
    pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
    folder, log = tmp_path / "numbers", []

    def run(write=None, **changes):
        settings = {"sources": named(*range(10)), "shard_size": 4, "what": "test"} | changes
        return write_folder(
            folder, settings.pop("facts", {"a": 1}), write=write or write_numbers(folder, log), **settings
        )

    run.log, run.folder = log, folder
    return run


def read_numbers(folder):
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [load_file(folder / line["shard"])["x"][line["row"]].item() for line in lines]


def test_an_interrupted_folder_is_completed_and_a_finished_one_is_left(numbers):
    def stops(name, members, state):
        if members[0].name == "8":
            raise KeyboardInterrupt
        return write_numbers(numbers.folder)(name, members, state)

    with pytest.raises(KeyboardInterrupt):
        numbers(stops)
    assert not (numbers.folder / "manifest.jsonl").exists()
    assert str(numbers()).endswith("10 samples, 2 of them written in this process.")
    assert numbers.log == [["8", "9"]]
    assert read_numbers(numbers.folder) == list(range(10))
    assert not list(numbers.folder.glob("shard-*.jsonl"))
    assert numbers().written == 0 and numbers.log == [["8", "9"]]


def test_another_run_is_not_mixed_into_a_folder(numbers, tmp_path):
    numbers()
    with pytest.raises(ValueError, match="was begun, got a 1, not 2. Give the same to continue"):
        numbers(facts={"a": 2})
    for content in ("[", "{}"):
        (numbers.folder / "dataset.json").write_text(content)
        with pytest.raises(ValueError, match="to state what its folder holds, got a file that does not"):
            numbers()
    (numbers.folder / "dataset.json").unlink()
    with pytest.raises(ValueError, match="Expected an empty folder or one with dataset.json"):
        numbers()


def test_a_folder_of_an_earlier_version_is_refused_in_words(numbers):
    numbers(facts={"version": 1})
    with pytest.raises(
        ValueError, match="of version 2, got 1: the folder does not say which files it was made from"
    ):
        numbers(facts={"version": 2})


def test_another_file_is_named_without_its_hash(numbers, tmp_path):
    paths = [("VAE", tmp_path / "vae"), ("text of the base", tmp_path / "text")]
    for _, path in paths:
        path.write_bytes(b"old")

    def facts():
        return {"a": 1, "files": stamp_files(ShardFolder(numbers.folder), paths)}

    numbers(facts=facts())
    os.utime(paths[0][1], (1, 1))
    assert numbers(facts=facts()).written == 0, "another time is no other content"
    paths[0][1].write_bytes(b"new")
    os.utime(paths[0][1], (1, 1))
    with pytest.raises(
        ValueError,
        match="numbers was begun, got another VAE. Give the same to continue, or choose another folder.$",
    ):
        numbers(facts=facts())


def test_one_sample_more_or_less_touches_its_own_shard_alone(numbers):
    numbers()
    summary = numbers(sources=named(*range(1, 12)))
    assert numbers.log[3:] == [["1", "2", "3"], ["10", "11"]] and summary.written == 5
    assert "Since the last run 10, 11 are new; 0 is removed." in str(summary)
    assert sorted(read_numbers(numbers.folder)) == list(range(1, 12))
    assert numbers(sources=named(*range(1, 12))).changes == "" and len(numbers.log) == 5


@pytest.mark.parametrize("stopped", [False, True])
def test_a_replaced_file_makes_its_shard_anew(numbers, tmp_path, stopped):
    """Under the same name, of the same size, and with the same date; in a finished folder and in one that was
    stopped.
    """
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"old")
        os.utime(tmp_path / str(number), (1, 1))
    sources = named(*range(10), files=tmp_path)

    def stops(name, members, state):
        if members[0].name == "8":
            raise KeyboardInterrupt
        return write_numbers(numbers.folder)(name, members, state)

    with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
        numbers(stops if stopped else None, sources=sources)
    (tmp_path / "5").write_bytes(b"new")
    os.utime(tmp_path / "5", (1, 1))
    numbers.log.clear()
    assert numbers(sources=sources).changes == "5 is replaced"
    assert numbers.log == [["4", "5", "6", "7"]] + [["8", "9"]] * stopped
    assert read_numbers(numbers.folder) == list(range(10))


def test_a_run_that_stops_while_a_shard_is_made_anew_is_completed(numbers, tmp_path):
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"old")
    sources = named(*range(10), files=tmp_path)
    numbers(sources=sources)
    (tmp_path / "5").write_bytes(b"new")

    def stops(name, members, state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        numbers(stops, sources=sources)
    assert not (numbers.folder / "manifest.jsonl").exists(), "its rows would be those of another shard"
    numbers.log.clear()
    numbers(sources=sources)
    assert numbers.log == [["4", "5", "6", "7"]] and read_numbers(numbers.folder) == list(range(10))


def test_a_lost_shard_is_made_anew(numbers):
    numbers()
    (numbers.folder / "shard-00001.safetensors").unlink()
    numbers.log.clear()
    assert numbers().written == 4 and numbers.log == [["4", "5", "6", "7"]]


def test_words_of_a_folder_that_are_damaged_name_the_file_or_are_made_anew(numbers):
    def stops(name, members, state):
        if members[0].name == "8":
            raise KeyboardInterrupt
        return write_numbers(numbers.folder)(name, members, state)

    with pytest.raises(KeyboardInterrupt):
        numbers(stops)
    (numbers.folder / "shard-00000.jsonl").write_text("[\"\"")
    (numbers.folder / "shard-00001.jsonl").write_text("[1]")
    assert numbers().written == 10 and read_numbers(numbers.folder) == list(range(10))
    lines = (numbers.folder / "sources.jsonl").read_text().splitlines()
    for damage in ("{}", lines[1][:-5], lines[1].replace('"shard": 0', '"shard": "0"')):
        (numbers.folder / "sources.jsonl").write_text("\n".join([lines[0], damage, *lines[2:]]))
        with pytest.raises(ValueError, match=r"line 2 of .*sources\.jsonl"):
            numbers()


def test_what_is_left_out_is_said_every_time_until_it_is_mended(numbers):
    sources = named(0, "x", 1, 2, "xx", 3)
    for written in (4, 0):
        summary = numbers(sources=sources)
        assert (summary.count, summary.written) == (4, written)
        assert "2 left out: x (it has no number), xx (it has no number)." in str(summary)
    numbers.log.clear()
    summary = numbers(sources=named(0, "x", 1, 2, 3))
    assert not numbers.log and "xx is removed" in str(summary) and "1 left out: x " in str(summary)
    assert read_numbers(numbers.folder) == [0, 1, 2, 3]


def test_a_folder_of_which_nothing_can_be_used_names_the_first(numbers):
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match="Expected at least one usable sample for .*numbers, got none of 2; the first, x1: it "
            "has no number",
        ):
            numbers(sources=named("x1", "x2"))


def test_other_sources_under_another_name_do_not_replace_a_folder(numbers):
    numbers(facts={"about": {"source": "mine"}})
    with pytest.raises(
        ValueError,
        match="Expected the samples of 'mine', from which .*numbers was made, got 'yours', which holds none",
    ):
        numbers(facts={"about": {"source": "yours"}}, sources=named(20, 21))
    assert read_numbers(numbers.folder) == list(range(10))
    assert numbers(facts={"about": {"source": "renamed"}}).written == 0


def test_processes_that_do_not_see_each_other_do_not_start(numbers, monkeypatch):
    """Each would be the first, and write every shard."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState._prepare_backend", lambda *args, **kwargs: (None, "NO"))
    with pytest.raises(
        ValueError, match="Expected accelerate to see the 2 processes that were started, got 1"
    ):
        numbers()
