"""The benchmark reports after checks alone, and judges itself by the goals; the doctor names every backend
with a reason.
"""

import json
from dataclasses import replace
from graphlib import TopologicalSorter

import pytest
import torch
from PIL import Image

from spatialweave.kernels import doctor, segment_attention
from spatialweave.kernels.bench import goals, machine, report, results, rivals, tiles, timing, verify
from spatialweave.kernels.bench import run as bench
from spatialweave.kernels.segment_attention.cases import CASES
from spatialweave.models.cli import console as cli


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "CPU_SCORES", 128**2 * 4)
    monkeypatch.setattr(bench, "verify", lambda *given: verify.verify(*given, cases=CASES[:2]))


def test_bench_prints_writes_and_draws(small, tmp_path, capsys):
    record, plot = tmp_path / "b.json", tmp_path / "b.png"
    words = [
        "bench",
        "kernels",
        "--device",
        "cpu",
        "--rounds",
        "2",
        "--shape",
        "SDXL 1024 L2",
        "--shape",
        "PixArt 1024",
    ]
    assert cli.main([*words, "--json", str(record), "--plot", str(plot)]) == 0
    lines, found = capsys.readouterr().out.splitlines(), json.loads(record.read_text())
    times = found["times"]
    assert len(times) == 2 * 4 * 4 and not found["absent"]
    assert (
        lines[0].startswith("device cpu, threads ")
        and f"torch {torch.__version__}" in lines[0]
        and "Tflop/s" in lines[0]
    )
    assert len(lines) == 2 + len(times) + len(found["goals"])
    assert [(one["shape"], one["rival"], one["weight"]) for one in found["goals"]] == [
        (shape, *goal)
        for shape in ("SDXL 1024 L2", "PixArt 1024")
        for goal in (
            ("one stream", "zero"), ("ours, no row at zero", "half zero"),
            ("two calls, gather, merge", "mixed"), ("two calls, gather, merge", "one"),
        )
    ]  # fmt: skip
    assert found["machine"]["device"] == "cpu" and found["rates"]["operations"] > 0
    assert {one["weight"] for one in times} == {"zero", "mixed", "one", "half zero"}
    assert all(
        one["median"] > 0 and one["floor"] > 0 and len(one["spread"]) == 2 and one["mode"] == "eager"
        for one in times
    )
    assert {one["kernel"] for one in times if one["rival"] == "one stream"} == {
        "aten::_scaled_dot_product_flash_attention_for_cpu"
    }
    assert Image.open(plot).size[1] == 16 * (len([one for one in times if one["rival"] != "ours"]) + 2)


def test_no_time_from_wrong_numbers(small, monkeypatch, capsys):
    monkeypatch.setattr(verify, "segment_attention", lambda q, *given, **named: torch.zeros_like(q))
    assert cli.main(["bench", "kernels", "--device", "cpu", "--rounds", "1"]) == 1
    said = capsys.readouterr().err
    assert (
        "case pairs-mixed, triton, seed " in said
        and "is off by 1, 1e-05 is allowed; no time is reported" in said
    )


def test_no_time_from_wrong_gradients(monkeypatch):
    def half_as_steep(q, k, v, *given, **named):
        return segment_attention(q, k / 2 + k.detach() / 2, v, *given, **named)

    monkeypatch.setattr(verify, "segment_attention", half_as_steep)
    with pytest.raises(
        FloatingPointError, match="case pairs-mixed, composition, seed .*, gradient of k is off by 0.5"
    ):
        verify.verify(torch.device("cpu"), torch.float32, cases=CASES[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_case_is_verified_in_both_directions(dtype):
    """On a CPU by the composition alone; there are three extreme cases, whose gradients have no scale."""
    assert verify.verify(torch.device("cpu"), dtype) == 5 * len(CASES) + 3


def test_a_wrong_rival_has_no_time_and_a_reason(small, monkeypatch):
    monkeypatch.setattr(rivals, "two_calls", lambda *given: lambda q, k, v: q * float("nan"))
    run = bench.bench("cpu", rounds=1, shapes=("SDXL 1024 L2",))
    assert {timing.rival for timing in run.times} == {"ours", "concat and mask", "one stream"}
    sentence = (
        "SDXL 1024 L2, weight zero, eager: two calls, gather, merge has no time: "
        "FloatingPointError: two calls, gather, merge is off by nan"
    )
    assert (
        len(run.absent) == 4 and run.absent[0].startswith(sentence) and run.absent[0] in report.as_lines(run)
    )


def test_the_floor_is_the_slowest_of_products_copies_and_exponentials():
    size, keys = (2, 3, 100, 40), 200
    scores, values, fast, slow = 2 * 3 * 100 * 200, 4 * 2 * 3 * 100 * 40, 1e12, 1e3
    floors = {(slow, fast, fast): 160 * scores, (fast, slow, fast): 2 * values, (fast, fast, slow): scores}
    for given, least in floors.items():
        assert machine.Rates(*given).floor(size, keys, 2) == pytest.approx(least)
    assert machine.Rates(slow, fast, None).floor(size, keys, 2) == pytest.approx(160 * scores)


@pytest.mark.parametrize("rows, weight, keys", [
    (4, "zero", 64), (4, "mixed", 128), (4, "half zero", 96),
])  # fmt: skip
def test_the_floor_counts_the_keys_that_are_seen(rows, weight, keys):
    assert bench.seen_keys(*bench.problem(rows, 64, weight)) == pytest.approx(keys)


def medians(weight, mode="eager", size=(4, 10, 4096, 64), **times):
    named = {name.replace("_", " "): time for name, time in times.items()}
    return [
        results.Timing("a shape", size, weight, rival, time, (time, time), 0.1, mode, "")
        for rival, time in named.items()
    ]


def test_the_goals_are_judged_by_ratios():
    found = medians("zero", ours=1.0, one_stream=1.0) + medians("half zero", ours=1.5)
    found += medians(
        "mixed",
        ours=2.0,
        **{"ours, composition": 3.2, "two calls, gather, merge, cudnn": 2.8, "concat and mask": 2.0},
    )
    verdicts = {(one.rival, one.weight): one for one in goals.judge(found)}
    assert {of: round(one.ratio, 2) for of, one in verdicts.items()} == {
        ("one stream", "zero"): 1.0, ("ours, no row at zero", "half zero"): 1.33,
        ("best composition", "mixed"): 1.4,
        ("concat and mask", "mixed"): 1.0,
    }  # fmt: skip
    said = {of: str(one).rsplit(": ", 1)[1] for of, one in verdicts.items()}
    assert list(said.values()) == ["the stretch", "the stretch", "NO", "yes"]
    assert str(verdicts["concat and mask", "mixed"]).startswith(
        "goal a shape, eager, weight mixed: concat and mask over ours 1.00, must 1.50, stretch 2.00"
    )


@pytest.mark.parametrize(
    "size, must", [((4, 20, 1024, 64), 1.6), ((4, 8, 1024, 80), 1.4), ((4, 24, 4096, 128), 0.98)]
)
def test_the_goal_over_the_best_composition_depends_on_the_shape(size, must):
    found = medians("mixed", size=size, ours=1.0, **{"ours, composition": 1.0})
    assert [one.must for one in goals.judge(found) if one.rival == goals.COMPOSED] == [must]


def test_flex_attention_and_what_a_graph_replays_are_right(monkeypatch):
    """The rivals that only a GPU times, uncompiled and on a CPU."""
    monkeypatch.setattr(torch, "compile", lambda call, **given: call)
    rows = 4
    segments, log_weight = bench.problem(rows, 64, "half zero")
    q, k, v = (
        torch.randn(rows, 64, 3, 2, 16, generator=torch.Generator().manual_seed(0)).transpose(1, 3).unbind(2)
    )
    place = torch.device("cpu")
    table = torch.zeros(torch.tensor(log_weight).shape)
    calls = bench.rivals(segments, log_weight, place, "graph") | {"flex": rivals.flex(segments, table)}
    wanted = bench.expected_outputs((q, k, v), segments, log_weight)
    assert "flex" not in bench.right_ones(calls, (q, k, v), wanted)[0], "its weights are not yet in the table"
    table.copy_(torch.tensor(log_weight))
    found, wrong = bench.right_ones(calls, (q, k, v), wanted)
    assert set(found) == set(calls) >= {"ours", "flex"} and not wrong


def test_the_sets_of_inputs_are_captured_in_one_graph_and_what_cannot_be_has_a_reason(monkeypatch):
    inputs, calls = [(1, 2, 3), (4, 5, 6)], {"sum": lambda q, k, v: q + k + v}
    monkeypatch.setattr(timing, "captured", lambda plain: lambda: ["replayed", *(call() for call in plain)])
    found, unheld = timing.in_turn(calls, inputs, "graph")
    assert [turn() for turn in found["sum"]] == [["replayed", 6, 15]] and not unheld
    assert [turn() for turn in timing.in_turn(calls, inputs, "eager")[0]["sum"]] == [6, 15]

    def refuse(plain):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(timing, "captured", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    reason = "sum has no replay: RuntimeError: operation not permitted when stream is capturing"
    assert timing.in_turn(calls, inputs, "graph") == ({}, [reason])


@pytest.mark.parametrize(
    "seconds, held, rounds",
    [(None, 1, 25), (0.05, 1, 5), (0.001, 1, 3), (9.0, 1, 25), (None, 4, 7), (0.05, 4, 5)],
)
def test_rounds_are_those_that_fit_in_the_seconds_but_at_least_three(monkeypatch, seconds, held, rounds):
    monkeypatch.setattr(timing, "time_once", lambda call, place: call())
    turns = {"a": [lambda: 8.0] * (4 // held), "b": [lambda: 2.0] * (4 // held)}
    times = timing.interleaved(turns, torch.device("cpu"), 25, seconds, held=held)
    assert times == {"a": [8.0 / held] * rounds, "b": [2.0 / held] * rounds}
    assert len(timing.interleaved(turns, torch.device("cpu"), 2, 9.0)["a"]) == 2, "no more than asked for"


def test_a_profiler_that_fails_costs_no_times(monkeypatch):
    def broken(*given):
        raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED")

    monkeypatch.setattr(timing, "profiled", broken)
    assert timing.busiest({"a": lambda q: q}, [torch.zeros(1)]) == {}


def test_a_shape_on_which_ours_fails_costs_the_others_nothing(small, monkeypatch):
    """Every weight's times are handed out as soon as they are there."""
    real, seen = bench.expected_outputs, []

    def broken_at_width_72(given, *more):
        if given[0].shape[3] == 72:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(given, *more)

    def after(run):
        seen.append((len(run.times), list(run.absent)))

    monkeypatch.setattr(bench, "expected_outputs", broken_at_width_72)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        bench.bench(
            "cpu", rounds=1, shapes=("PixArt 1024", "SDXL 1024 L2"), weights=("mixed", "zero"), after=after
        )
    assert seen == [
        (at, ["PixArt 1024 ended early: OutOfMemoryError: CUDA out of memory"]) for at in (0, 4, 8)
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are replayed on a CUDA device")
def test_bench_on_a_gpu_has_both_modes():
    run = bench.bench("cuda", rounds=2, shapes=("SDXL 1024 L2",), weights=("mixed",), flex="default")
    assert {timing.mode for timing in run.times if timing.rival == "ours"} == {"eager", "graph"}
    assert not [reason for reason in run.absent if reason.startswith(("flex", "concat", "two calls"))]


@pytest.mark.parametrize("given, sentence", [
    ({"weights": ("much",)}, "Expected a weight from zero, mixed, one, half zero, got 'much'"),
    ({"flex": "yes"}, "Expected a way to compile FlexAttention from no, default, max-autotune, got 'yes'"),
    ({"seconds": 0.0}, "Expected at least 1 round in more than 0 seconds, got 12 rounds and 0.0 seconds"),
])  # fmt: skip
def test_bench_refuses_what_it_cannot_time(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        bench.bench("cpu", **given)


def test_bench_refuses(capsys):
    refused = {"Expected a shape from SD1.5 512": ["--shape", "huge"]}
    for sentence, given in (
        refused | {"Expected the device cuda or cpu for the benchmark, got meta": ["--device", "meta"]}
    ).items():
        assert cli.main(["bench", "kernels", *given]) == 1
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["bench", "kernels", "--rounds", "0"])
    assert "Expected a whole number from 1" in capsys.readouterr().err


def test_doctor_says_what_runs_and_why_not(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "the kernel needs a CUDA device, the tensors are on cpu" in text
    rows = [row for row in doctor.examine() if row["device"] == "cpu"]
    assert [(row["backend"], row["available"]) for row in rows] == [
        ("triton", "no"), ("triton", "no"), ("composition", "yes"), ("composition", "yes"),
        ("reference", "yes")
    ]  # fmt: skip
    assert all(row["why"] for row in doctor.examine())


def test_no_file_of_the_kernels_imports_in_a_circle(pack):
    """Late imports and those for type checkers count."""
    files = [name for name in pack.code if name.startswith("kernels/")]
    graph = {name: {module for _, module in pack.imports(name) if module.endswith(".py")} for name in files}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(files) and order.index("kernels/bench/goals.py") < order.index(
        "kernels/bench/report.py"
    )


def test_a_plan_passes_over_the_shapes_and_ends(small, monkeypatch):
    shapes = ("SDXL 1024 L2", "PixArt 1024")
    plan = replace(bench.PLANS["h200"], rounds=1, seconds=0.001)
    monkeypatch.setitem(bench.PLANS, "h200", plan)
    times = bench.bench("cpu", shapes=shapes, plan="h200").times
    order = list(dict.fromkeys((time.shape, time.weight) for time in times))
    assert order == [(shape, weight) for group in plan.passes for shape in shapes for weight in group]
    monkeypatch.setitem(bench.PLANS, "h200", replace(plan, minutes=0.0))
    late = bench.bench("cpu", shapes=shapes, plan="h200")
    assert not late.times and len(late.absent) == len(shapes) * len(plan.passes)
    assert late.absent[0] == "SDXL 1024 L2, weight mixed: not begun, the plan's time was over"


def test_a_plan_sets_what_the_options_would(capsys):
    assert cli.main(["bench", "kernels", "--plan", "h200", "--rounds", "2"]) != 0
    assert "Expected --plan without --rounds" in capsys.readouterr().err


def test_a_run_concludes_which_backend_a_shape_is_left_to():
    def timed(rival, median, mode="graph"):
        return results.Timing("s", (4, 8, 4096, 40), "mixed", rival, median, (median,) * 2, 0.1, mode, "")

    whole = next(tile for tile in tiles.CANDIDATES[40] if tile.whole)
    made = [timed("ours, triton", 1.2), timed("ours, composition", 0.7), timed("two calls", 0.1)]
    where = "width 40, 4096 queries, weights on the GPU (s)"
    assert tiles.list_conclusions(made) == [
        f"{where}: left to torch, 1.200 ms by ours, triton against 0.700 by torch"
    ]
    name = "tile 64 x 128, 4 warps, 3 stages, one part"
    assert tiles.describe(whole) == name
    assert tiles.list_conclusions([*made, timed(name, 0.6)]) == [
        f"{where}: the kernel's, 0.600 ms by {name} against 0.700 by torch"
    ]
    assert not tiles.list_conclusions([timed("ours", 1.0, "eager")])
