"""The benchmark reports after checks alone; the doctor names every backend with a reason."""

import json

import pytest
import torch
from PIL import Image

from spatialweave.kernels import bench, doctor
from spatialweave.models import cli


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "CPU_SCORES", 128**2 * 4)
    monkeypatch.setattr(bench, "CASES", bench.CASES[:2])


def test_bench_prints_writes_and_draws(small, tmp_path, capsys):
    record, plot = tmp_path / "b.json", tmp_path / "b.png"
    words = ["bench", "kernels", "--device", "cpu", "--rounds", "2", "--shape", "SDXL 1024 L2", "--shape", "klein-4B"]
    assert cli.main([*words, "--json", str(record), "--plot", str(plot)]) == 0
    lines = capsys.readouterr().out.splitlines()
    times = json.loads(record.read_text())["times"]
    assert len(lines) == 1 + len(times) == 1 + 4 * 4 + 2 * 3
    assert {one["weight"] for one in times} == {"zero", "mixed", "one", "half zero"}
    assert all(one["median"] > 0 and one["floor"] > 0 and len(one["spread"]) == 2 for one in times)
    assert Image.open(plot).size[1] == 16 * (len([one for one in times if one["rival"] != "ours"]) + 2)


def test_no_time_from_wrong_numbers(small, monkeypatch, capsys):
    monkeypatch.setattr(bench, "segment_attention", lambda q, *given, **named: torch.zeros_like(q))
    assert cli.main(["bench", "kernels", "--device", "cpu", "--rounds", "1"]) == 1
    assert "case pairs-mixed is off by 1, 1e-05 is allowed; no time is reported" in capsys.readouterr().err


def test_a_wrong_rival_has_no_time(small, monkeypatch):
    monkeypatch.setattr(bench, "two_calls", lambda *given: lambda q, k, v: q * float("nan"))
    found = bench.bench("cpu", rounds=1, shapes=("SDXL 1024 L2",))
    assert {timing.rival for timing in found} == {"ours", "concat and mask", "one stream"}


def test_bench_refuses(capsys):
    for given, sentence in ((["--shape", "huge"], "no shape 'huge'; choose from SD1.5 512"), (["--rounds", "0"], "got 0 rounds")):
        assert cli.main(["bench", "kernels", *given]) == 1
        assert sentence in capsys.readouterr().err


def test_doctor_says_what_runs_and_why_not(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "the kernel needs a CUDA device, the tensors are on cpu" in text
    rows = [row for row in doctor.examine() if row["device"] == "cpu"]
    assert [(row["backend"], row["available"]) for row in rows] == [
        ("triton", "no"), ("triton", "no"), ("composition", "yes"), ("composition", "yes"), ("reference", "yes")
    ]  # fmt: skip
    assert all(row["why"] for row in doctor.examine())
