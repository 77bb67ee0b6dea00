"""`spatialweave bench kernels`: the attention op against what one would write instead, interleaved in one run, after its checks.

Times are medians; a rival whose numbers are wrong has none. Shapes are those of I-LDM's backbones and of a joint sequence. On a GPU every
rival is timed twice: as it is called, launches included, and replayed from a CUDA graph, which leaves them out.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..segment_attention.reference import segment_attention_reference
from ..segment_attention.segments import Segments, full_weight
from .checks import check, verify
from .goals import judge
from .rates import Rates, describe_machine, measure_rates
from .rivals import FLEX, ONE_STREAM, Call, flex, rivals
from .timing import busiest, in_turn, interleaved, sentence

SHAPES = {
    "SD1.5 512": (4, 8, 4096, 40), "SD1.5 512 mid": (4, 8, 1024, 80), "SDXL 1024 L1": (4, 10, 4096, 64), "SDXL 1024 L2": (4, 20, 1024, 64),
    "SD2.1 768": (4, 5, 9216, 64), "SD2.1 768 L2": (4, 10, 2304, 64), "PixArt 1024": (4, 16, 4096, 72), "DiT hd128": (4, 24, 4096, 128),
    "16k tokens": (2, 10, 16384, 64), "klein-4B": (1, 24, 8704, 128), "klein-9B": (1, 32, 8704, 128),
}  # fmt: skip
WEIGHTS = {"zero": 0.0, "mixed": 0.4, "one": 1.0, "half zero": None}
TUNINGS = {"no": {}, "default": {FLEX: None}, "max-autotune": {FLEX: None, f"{FLEX}, max-autotune": "max-autotune-no-cudagraphs"}}
CPU_SCORES = 3 << 20  # of a head and row: longer sequences are cut to what a CPU does in a second or so
SETS = 4  # of inputs, in turn, so that a cache does not hold them
ROUNDS = {"cuda": 25}  # of each half
FEW_ROUNDS = 12  # elsewhere


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median, and the medians of the two halves of the run. `floor`: what the machine needs at least. `mode`: "eager" or
    "graph". `kernel`: the name under which most of the time is spent, so that one sees which attention torch chose.
    """

    shape: str
    size: tuple[int, int, int, int]
    weight: str
    rival: str
    median: float
    spread: tuple[float, float]
    floor: float
    mode: str
    kernel: str


@dataclass(frozen=True)
class Run:
    """`absent`: a sentence for every rival that has no time, with the reason."""

    machine: dict[str, object]
    rates: Rates
    times: list[Timing]
    absent: list[str]


@dataclass(frozen=True)
class Work:
    """What is timed, and how long: at most `rounds` of each rival in each half, fewer where `seconds` do not hold them."""

    place: torch.device
    dtype: torch.dtype
    rounds: int
    seconds: float | None
    weights: tuple[str, ...]
    flex: str
    after: Callable[[Run], None]


def bench(
    device: str | torch.device | None = None, *, rounds: int | None = None, seconds: float | None = None, shapes: Iterable[str] = SHAPES,
    weights: Iterable[str] = WEIGHTS, flex: str = "max-autotune", after: Callable[[Run], None] = lambda run: None,
) -> Run:  # fmt: skip
    """All rivals of all shapes and weights. rounds: each rival's runs in each half; by default 25 on a GPU, 12 elsewhere.

    seconds: for the rounds of one weight, mode and half; as many rounds as fit, but 3 at least. flex: "no" leaves FlexAttention out,
    "default" compiles it once for a shape, "max-autotune" a second time with that. after: is given what there is after every weight.
    A shape on which ours is wrong or fails has a sentence in `absent`; what it raised is raised after the others.
    """
    for kind, given, known in (("shape", shapes, SHAPES), ("weight", weights, WEIGHTS), ("way to compile FlexAttention", [flex], TUNINGS)):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"There is no {kind} {unknown[0]!r}; choose from {', '.join(known)}.")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type not in ("cuda", "cpu"):
        raise ValueError(f"The bench got the device {place}; it times on cuda or cpu.")
    rounds = ROUNDS.get(place.type, FEW_ROUNDS) if rounds is None else rounds
    if rounds < 1 or (seconds is not None and not seconds > 0):
        raise ValueError(f"The bench got {rounds} rounds and {seconds} seconds; run at least 1, in more than 0.")
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    verify(place, dtype)
    run = Run(describe_machine(place), measure_rates(place, dtype), [], [])
    work = Work(place, dtype, rounds, seconds, tuple(weights), flex, after)
    failed = [error for name in shapes if (error := _try_shape(name, run, work)) is not None]
    if failed:
        raise failed[0]
    return run


def _try_shape(name: str, run: Run, work: Work) -> Exception | None:
    try:
        with torch.no_grad():
            _bench_shape(name, run, work)
    except Exception as error:  # noqa: BLE001 - raised after the other shapes, which are worth their times
        run.absent.append(f"{name} ended early: {sentence(error)}")
        work.after(run)
        return error
    return None


def _bench_shape(name: str, run: Run, work: Work) -> None:
    b, h, n, d = SHAPES[name]
    place, cuda = work.place, work.place.type == "cuda"
    n = n if cuda else min(n, math.isqrt(CPU_SCORES) // 64 * 64 // 2)
    inputs = [torch.randn(b, n, 3, h, d, dtype=work.dtype, device=place).transpose(1, 3).unbind(2) for _ in range(SETS)]
    table, fused = None, None
    for weight in (weight for weight in work.weights if b > 1 or weight != "half zero"):
        segments, log_weight = problem(b, n, weight)
        floor = run.rates.floor((b, h, n, d), seen_keys(segments, log_weight), work.dtype.itemsize)
        wanted = few_wanted(inputs[0], segments, log_weight)
        if cuda:
            table = torch.tensor(log_weight, device=place) if table is None else table.copy_(torch.tensor(log_weight))
            fused = compiled(segments, table, work.flex) if fused is None else fused
        kernels: dict[str, str] = {}
        for mode in ("eager", "graph") if cuda else ("eager",):
            calls, wrong = right_ones(rivals(segments, log_weight, place, mode) | (fused or {}), inputs[0], wanted)
            fused = {rival: call for rival, call in (fused or {}).items() if rival in calls}  # compiling what fails is not tried again
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
    """FlexAttention is compiled once for a shape, whatever the weights in the table."""
    torch.compiler.reset()
    return {name: flex(segments, table, tuning=tuning) for name, tuning in TUNINGS[how].items()}


def few_wanted(given: Sequence[Tensor], segments: Segments, log_weight: list) -> list[tuple[slice, Tensor]]:
    """What the first 16 queries of every segment must give, in float64, by the plain formula."""
    q, k, v = (tensor.double() for tensor in given)
    full, found = full_weight(log_weight, q, segments), []
    for number, (start, stop) in enumerate(segments.query_ranges()):
        at = slice(start, min(start + 16, stop))
        few = Segments((at.stop - start,), segments.sources)
        weight = full[:, :, number : number + 1]
        found.append((at, segment_attention_reference(q[:, :, at], k, v, few, weight, scale=q.shape[3] ** -0.5)[0]))
    return found


def right_ones(calls: dict[str, Call], given: Sequence[Tensor], wanted: list[tuple[slice, Tensor]]) -> tuple[dict[str, Call], list[str]]:
    """Those that run here and are right, and a sentence for each of the others. Raises what ours raises."""
    found, wrong = {}, []
    for rival, call in calls.items():
        try:
            got = call(*given)
            for at, want in wanted if rival != ONE_STREAM else ():
                check(rival, got[:, :, at], want)
        except Exception as error:  # noqa: BLE001 - what others' code raises on some machine is no reason to lose the run
            if rival == "ours":
                raise
            wrong.append(f"{rival} has no time: {sentence(error)}")
            continue
        found[rival] = call
    return found, wrong


def problem(rows: int, tokens: int, weight: str) -> tuple[Segments, list]:
    """Pairs of streams; or, for one row, text, image and depth in a joint sequence, where image and depth see each other at the weight."""
    if rows == 1:
        text = min(512, tokens // 16)
        image = (tokens - text) // 2
        other = math.log(WEIGHTS[weight]) if WEIGHTS[weight] else -math.inf
        return Segments.joint((text, image, tokens - text - image)), [[0.0, 0.0, 0.0], [0.0, 0.0, other], [0.0, other, 0.0]]
    values = [WEIGHTS[weight]] * rows if WEIGHTS[weight] is not None else [0.0, 0.4] * (rows // 2)
    logs = [[[0.0, math.log(value) if value else -math.inf]] for value in values]
    return Segments.coupled(tokens, tuple(row ^ 1 for row in range(rows))), logs


def seen_keys(segments: Segments, log_weight: list) -> float:
    """Of a query, on average over rows and segments."""
    weight = torch.tensor(log_weight)
    lengths = torch.tensor([float(source.length) for source in segments.sources])
    by_segment = ((weight > -math.inf) * lengths).sum(-1).reshape(-1, len(segments.queries)).mean(0)
    return float((by_segment * torch.tensor(segments.queries)).sum() / sum(segments.queries))


def as_lines(run: Run) -> list[str]:
    """The machine; a table of milliseconds, the rival's time over ours in the same mode (of ours by its own call, where a graph does not
    hold it), the floor's share, the kernel that took most of it; what has no time; the goals.
    """
    ours = {(t.shape, t.weight, t.mode): t.median for t in run.times if t.rival == "ours"}
    rates = f"{run.rates.operations / 1e12:.3g} Tflop/s, {run.rates.bytes / 1e9:.3g} GB/s"
    lines = [", ".join(f"{name} {value}" for name, value in run.machine.items() if value is not None) + f"; measured {rates}"]
    row = "{:14s} {:>16s} {:9s} {:5s} {:34s} {:>9s} {:>19s} {:>9s} {:>8s} {}".format
    lines.append(row("shape", "b h n d", "weight", "mode", "rival", "ms", "halves", "over ours", "of floor", "kernel"))
    for t in run.times:
        size, halves = " ".join(map(str, t.size)), f"{t.spread[0]:.3f} {t.spread[1]:.3f}"
        ratio = t.median / ours.get((t.shape, t.weight, t.mode), ours[t.shape, t.weight, "eager"])
        numbers = (f"{t.median:.3f}", halves, f"{ratio:.2f}", f"{t.floor / t.median:.2f}")
        lines.append(row(t.shape, size, t.weight, t.mode, t.rival, *numbers, t.kernel[:60]))
    return [*lines, *run.absent, *(str(verdict) for verdict in judge(run.times))]


def write_record(path: Path, run: Run) -> None:
    """JSON: the machine, its rates, the times, what has none, the goals. Whoever reads it meanwhile finds the old one or the new one."""
    found = asdict(run) | {"goals": [asdict(verdict) for verdict in judge(run.times)]}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
