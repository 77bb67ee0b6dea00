"""`spatialweave bench kernels`: verifies the attention op, then times it interleaved with its rivals.

Times are medians; a rival whose output is wrong gets none. Shapes are those of I-LDM's backbones.
On a GPU every rival is timed twice: eager, launch overhead included, and as a replay of a
CUDA graph, which leaves that out.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..segment_attention.reference import segment_attention_reference
from ..segment_attention.segments import Segments, full_weight
from .machine import describe_machine, measure_rates
from .results import Run, Timing
from .rivals import FLEX, ONE_STREAM, Call, flex, rivals
from .tiles import tile_calls
from .timing import busiest, in_turn, interleaved, sentence
from .verify import check, verify

SHAPES = {
    "SD1.5 512": (4, 8, 4096, 40), "SD1.5 512 mid": (4, 8, 1024, 80),
    "SDXL 1024 L1": (4, 10, 4096, 64), "SDXL 1024 L2": (4, 20, 1024, 64),
    "SD2.1 768": (4, 5, 9216, 64), "SD2.1 768 L2": (4, 10, 2304, 64),
    "PixArt 1024": (4, 16, 4096, 72), "DiT hd128": (4, 24, 4096, 128),
    "16k tokens": (2, 10, 16384, 64),
}  # fmt: skip
WEIGHTS = {"zero": 0.0, "mixed": 0.4, "one": 1.0, "half zero": None}
TUNINGS = {
    "no": {},
    "default": {FLEX: None},
    "max-autotune": {FLEX: None, f"{FLEX}, max-autotune": "max-autotune-no-cudagraphs"},
}
CPU_SCORES = 3 << 20  # of a head and row: longer sequences are cut to what a CPU does in a second or so
SETS = 4  # of inputs, in turn, so that a cache does not hold them
ROUNDS = {"cuda": 25}  # of each half
FEW_ROUNDS = 12  # elsewhere


@dataclass(frozen=True)
class Plan:
    """A run that ends: the weights in `passes` over the shapes, FlexAttention in the first alone.

    Other tiles of the kernel are among the rivals of weight "mixed". No shape begins after `minutes`.
    """

    passes: tuple[tuple[str, ...], ...]
    rounds: int
    seconds: float
    flex: str
    minutes: float


# an H200's session of ten minutes: what decides first
PLANS = {"h200": Plan((("mixed",), ("zero", "half zero"), ("one",)), 25, 1.0, "default", 8.0)}


@dataclass(frozen=True)
class Work:
    """Settings of a run: at most `rounds` per rival and half, fewer where they take more than `seconds`; with
    `tiles` the kernel's other tiles, too; no shape begins when time.monotonic() is beyond `ends`.
    """

    place: torch.device
    dtype: torch.dtype
    rounds: int
    seconds: float | None
    weights: tuple[str, ...]
    flex: str
    after: Callable[[Run], None]
    tiles: bool = False
    ends: float = math.inf


def bench(
    device: str | torch.device | None = None,
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    shapes: Iterable[str] = SHAPES,
    weights: Iterable[str] = WEIGHTS,
    flex: str = "max-autotune",
    after: Callable[[Run], None] = lambda run: None,
    plan: str | None = None,
) -> Run:
    """Time all rivals on all shapes and weights.

    rounds: runs per rival and half; by default 25 on a GPU, 12 elsewhere. seconds: time limit for the rounds
    of one weight, mode and half; at least 3 rounds run. flex: "no" skips FlexAttention, "default" compiles it
    once per shape, "max-autotune" a second time in that mode. after: called with the partial run after every
    weight. A shape on which ours fails gets a line in `absent`, and its exception is raised after the other
    shapes ran. plan: one of PLANS, which sets rounds, seconds, weights and flex.
    """
    began, passes, chosen = time.monotonic(), [(tuple(weights), flex)], None
    if plan is not None:
        chosen = PLANS[plan]
        rounds, seconds = chosen.rounds, chosen.seconds
        passes = [(group, "no" if number else chosen.flex) for number, group in enumerate(chosen.passes)]
    for kind, names, known in (
        ("a shape", shapes, SHAPES),
        ("a weight", weights, WEIGHTS),
        ("a way to compile FlexAttention", [flex], TUNINGS),
    ):
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(
                f"Expected {kind} from {', '.join(known)}, got {unknown[0]!r}. Choose one of them."
            )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type not in ("cuda", "cpu"):
        raise ValueError(
            f"Expected the device cuda or cpu for the benchmark, got {place}. Choose one of them."
        )
    rounds = ROUNDS.get(place.type, FEW_ROUNDS) if rounds is None else rounds
    if rounds < 1 or (seconds is not None and not seconds > 0):
        raise ValueError(
            f"Expected at least 1 round in more than 0 seconds, got {rounds} rounds and {seconds} seconds. "
            "Raise them."
        )
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    verify(place, dtype)
    run = Run(describe_machine(place), measure_rates(place, dtype), [], [])
    work = Work(place, dtype, rounds, seconds, (), "no", after)
    if chosen is not None:
        work = replace(work, tiles=place.type == "cuda", ends=began + 60 * chosen.minutes)
    works = [replace(work, weights=group, flex=how) for group, how in passes]
    failed = [error for each in works for name in shapes if (error := _try_shape(name, run, each))]
    if failed:
        raise failed[0]
    return run


def _try_shape(name: str, run: Run, work: Work) -> Exception | None:
    if time.monotonic() > work.ends:
        run.absent.append(f"{name}, weight {', '.join(work.weights)}: not begun, the plan's time was over")
        return None
    try:
        with torch.no_grad():
            _bench_shape(name, run, work)
    except Exception as error:  # noqa: BLE001 - raised after the other shapes
        run.absent.append(f"{name} ended early: {sentence(error)}")
        work.after(run)
        return error
    return None


def _bench_shape(name: str, run: Run, work: Work) -> None:
    b, h, n, d = SHAPES[name]
    place, cuda = work.place, work.place.type == "cuda"
    n = n if cuda else min(n, math.isqrt(CPU_SCORES) // 64 * 64 // 2)
    inputs = [
        torch.randn(b, n, 3, h, d, dtype=work.dtype, device=place).transpose(1, 3).unbind(2)
        for _ in range(SETS)
    ]
    table, fused = None, None
    for weight in work.weights:
        segments, log_weight = problem(b, n, weight)
        floor = run.rates.floor((b, h, n, d), seen_keys(segments, log_weight), work.dtype.itemsize)
        expected = expected_outputs(inputs[0], segments, log_weight)
        if cuda:
            table = (
                torch.tensor(log_weight, device=place)
                if table is None
                else table.copy_(torch.tensor(log_weight))
            )
            fused = compiled(segments, table, work.flex) if fused is None else fused
        kernels: dict[str, str] = {}
        for mode in ("eager", "graph") if cuda else ("eager",):
            given = rivals(segments, log_weight, place, mode) | (fused or {})
            if work.tiles and weight == "mixed" and mode == "graph":
                given |= tile_calls(segments, log_weight, inputs[0][0])
            calls, wrong = right_ones(given, inputs[0], expected)
            # a failed compilation is not tried again
            fused = {rival: call for rival, call in (fused or {}).items() if rival in calls}
            kernels = kernels or busiest(calls, inputs[0])
            turns, unheld = in_turn(calls, inputs, mode)
            run.absent.extend(f"{name}, weight {weight}, {mode}: {reason}" for reason in wrong + unheld)
            held = 1 if mode == "eager" else SETS
            halves = [interleaved(turns, place, work.rounds, work.seconds, held=held) for _ in range(2)]
            for rival in turns:
                first, second = (half[rival] for half in halves)
                spread = (statistics.median(first), statistics.median(second))
                timing = (statistics.median(first + second), spread, floor, mode, kernels.get(rival, ""))
                run.times.append(Timing(name, (b, h, n, d), weight, rival, *timing))
        work.after(run)


def compiled(segments: Segments, table: Tensor, how: str) -> dict[str, Call]:
    """FlexAttention compiled once per shape; the weights are read from `table`."""
    torch.compiler.reset()
    return {name: flex(segments, table, tuning=tuning) for name, tuning in TUNINGS[how].items()}


def expected_outputs(
    inputs: Sequence[Tensor], segments: Segments, log_weight: list
) -> list[tuple[slice, Tensor]]:
    """The reference output in float64 of the first 16 queries of every segment."""
    q, k, v = (tensor.double() for tensor in inputs)
    full, found = full_weight(log_weight, q, segments), []
    for number, (start, stop) in enumerate(segments.query_ranges()):
        at = slice(start, min(start + 16, stop))
        few = Segments((at.stop - start,), segments.sources)
        weight = full[:, :, number : number + 1]
        found.append(
            (at, segment_attention_reference(q[:, :, at], k, v, few, weight, scale=q.shape[3] ** -0.5)[0])
        )
    return found


def right_ones(
    calls: dict[str, Call], inputs: Sequence[Tensor], expected: list[tuple[slice, Tensor]]
) -> tuple[dict[str, Call], list[str]]:
    """The rivals that run here with a correct output, and one line per other. Raises what ours raises."""
    found, wrong = {}, []
    for rival, call in calls.items():
        try:
            got = call(*inputs)
            for at, output in expected if rival != ONE_STREAM else ():
                check(rival, got[:, :, at], output)
        except Exception as error:  # noqa: BLE001 - a rival that fails here must not end the run
            if rival == "ours":
                raise
            wrong.append(f"{rival} has no time: {sentence(error)}")
            continue
        found[rival] = call
    return found, wrong


def problem(rows: int, tokens: int, weight: str) -> tuple[Segments, list]:
    """Coupled pairs of rows."""
    values = [WEIGHTS[weight]] * rows if WEIGHTS[weight] is not None else [0.0, 0.4] * (rows // 2)
    logs = [[[0.0, math.log(value) if value else -math.inf]] for value in values]
    return Segments.coupled(tokens, tuple(row ^ 1 for row in range(rows))), logs


def seen_keys(segments: Segments, log_weight: list) -> float:
    """Keys per query with a nonzero weight, averaged over rows and segments."""
    weight = torch.tensor(log_weight)
    lengths = torch.tensor([float(source.length) for source in segments.sources])
    by_segment = ((weight > -math.inf) * lengths).sum(-1).reshape(-1, len(segments.queries)).mean(0)
    return float((by_segment * torch.tensor(segments.queries)).sum() / sum(segments.queries))
