"""The benchmark reports after checks alone; the doctor names every backend with a reason."""

import json

import pytest
import torch
from PIL import Image

from spatialweave.kernels import bench, doctor, rivals
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
    assert all(one["median"] > 0 and one["floor"] > 0 and len(one["spread"]) == 2 and one["mode"] == "eager" for one in times)
    assert {one["kernel"] for one in times if one["rival"] == "one stream"} == {"aten::_scaled_dot_product_flash_attention_for_cpu"}
    assert Image.open(plot).size[1] == 16 * (len([one for one in times if one["rival"] != "ours"]) + 2)


def test_no_time_from_wrong_numbers(small, monkeypatch, capsys):
    monkeypatch.setattr(bench, "segment_attention", lambda q, *given, **named: torch.zeros_like(q))
    assert cli.main(["bench", "kernels", "--device", "cpu", "--rounds", "1"]) == 1
    assert "case pairs-mixed is off by 1, 1e-05 is allowed; no time is reported" in capsys.readouterr().err


def test_a_wrong_rival_has_no_time(small, monkeypatch):
    monkeypatch.setattr(bench, "two_calls", lambda *given: lambda q, k, v: q * float("nan"))
    found = bench.bench("cpu", rounds=1, shapes=("SDXL 1024 L2",))
    assert {timing.rival for timing in found} == {"ours", "concat and mask", "one stream"}


def test_the_floor_is_the_slowest_of_products_copies_and_exponentials():
    size, keys = (2, 3, 100, 40), 200
    scores, values, fast, slow = 2 * 3 * 100 * 200, 4 * 2 * 3 * 100 * 40, 1e12, 1e3
    floors = {(slow, fast, fast): 160 * scores, (fast, slow, fast): 2 * values, (fast, fast, slow): scores}
    for rates, least in floors.items():
        assert bench.Rates(*rates).floor(size, keys, 2) == pytest.approx(least)
    assert bench.Rates(slow, fast, None).floor(size, keys, 2) == pytest.approx(160 * scores)


@pytest.mark.parametrize("weight", ["half zero", "joint"])
def test_flex_attention_and_what_a_graph_replays_are_right(monkeypatch, weight):
    """The rivals that only a GPU times, uncompiled and on a CPU."""
    monkeypatch.setattr(torch, "compile", lambda call, **given: call)
    rows = 1 if weight == "joint" else 4
    segments, log_weight = bench.problem(rows, 64, "mixed" if weight == "joint" else weight)
    q, k, v = torch.randn(rows, 64, 3, 2, 16, generator=torch.Generator().manual_seed(0)).transpose(1, 3).unbind(2)
    place = torch.device("cpu")
    calls = bench.rivals(segments, log_weight, place, "graph") | {"flex": rivals.flex(segments, log_weight, place)}
    assert set(bench.right_ones(calls, (q, k, v), segments, log_weight)) == set(calls) >= {"ours", "flex"}


def test_each_set_of_inputs_is_captured_once_and_what_cannot_be_has_no_replays(monkeypatch):
    inputs = [(1, 2, 3), (4, 5, 6)]
    monkeypatch.setattr(bench, "captured", lambda call: lambda: ("replayed", call()))
    assert [turn() for turn in bench.in_turn(lambda q, k, v: q + k + v, inputs, "graph")] == [("replayed", 6), ("replayed", 15)]
    assert [turn() for turn in bench.in_turn(lambda q, k, v: q + k + v, inputs, "eager")] == [6, 15]

    def refuse(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(bench, "captured", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert bench.in_turn(lambda q, k, v: q, inputs, "graph") == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are replayed on a CUDA device")
def test_bench_on_a_gpu_has_both_modes():
    found = bench.bench("cuda", rounds=2, shapes=("SDXL 1024 L2",))
    assert {timing.mode for timing in found if timing.rival == "ours"} == {"eager", "graph"}


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
