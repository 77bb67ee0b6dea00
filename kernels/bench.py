"""`spatialweave bench kernels`: the attention op against what one would write instead, interleaved in one run, after its checks.

Times are medians; a rival whose numbers are wrong has none. Shapes are those of I-LDM's backbones and of a joint sequence. On a GPU every
rival is timed twice: as it is called, launches included, and replayed from a CUDA graph, which leaves them out.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from .dispatch import use_backend
from .rivals import Call, beside, flex, two_calls
from .segment_attention import segment_attention
from .segment_attention.cases import CASES
from .segment_attention.reference import bias_row, segment_attention_reference
from .segment_attention.segments import Segments, full_weight

SHAPES = {
    "SD1.5 512": (4, 8, 4096, 40), "SD1.5 512 mid": (4, 8, 1024, 80), "SDXL 1024 L1": (4, 10, 4096, 64), "SDXL 1024 L2": (4, 20, 1024, 64),
    "SD2.1 768": (4, 5, 9216, 64), "SD2.1 768 L2": (4, 10, 2304, 64), "PixArt 1024": (4, 16, 4096, 72), "DiT hd128": (4, 24, 4096, 128),
    "16k tokens": (2, 10, 16384, 64), "klein-4B": (1, 24, 8704, 128), "klein-9B": (1, 32, 8704, 128),
}  # fmt: skip
WEIGHTS = {"zero": 0.0, "mixed": 0.4, "one": 1.0, "half zero": None}
CPU_SCORES = 3 << 20  # of a head and row: longer sequences are cut to what a CPU does in a second or so
SETS = 4  # of inputs, in turn, so that a cache does not hold them


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
class Rates:
    """What the machine does in a second, here and now: operations of a large matrix product, bytes read and written, exponentials.

    `exponentials` is None where the clock of a GPU is unknown.
    """

    operations: float
    bytes: float
    exponentials: float | None

    def floor(self, size: tuple[int, int, int, int], keys: float, width: int) -> float:
        """Milliseconds for b, h, n, d with so many keys a query and bytes a value: the slowest of products, copies and exponentials."""
        b, h, n, d = size
        scores = b * h * n * keys
        least = [4 * scores * d / self.operations, 4 * b * h * n * d * width / self.bytes]
        return 1e3 * max(least + ([scores / self.exponentials] if self.exponentials else []))


def verify(device: torch.device, dtype: torch.dtype) -> None:
    """The op's cases on this device against the reference in float64. Raises FloatingPointError; then no time is worth having."""
    for case in CASES:
        q, k, v = case.tensors(torch.Generator().manual_seed(1), dtype)
        weight = full_weight(case.log_weight(), q, case.segments)
        want, _ = segment_attention_reference(q.double(), k.double(), v.double(), case.segments, weight.double(), scale=0.2)
        got = segment_attention(*(tensor.to(device) for tensor in (q, k, v)), case.segments, weight, scale=0.2)
        check(f"case {case.name}", got.cpu(), want)


def check(name: str, got: Tensor, want: Tensor) -> None:
    error = float((got.double() - want).norm() / want.norm())
    limit = {torch.float32: 1e-5, torch.float16: 2e-3}.get(got.dtype, 1e-2)
    if not error <= limit:
        raise FloatingPointError(f"{name} is off by {error:.3g}, {limit:g} is allowed; no time is reported.")


def bench(device: str | torch.device | None = None, *, rounds: int = 12, shapes: tuple[str, ...] = tuple(SHAPES)) -> list[Timing]:
    """All rivals of all shapes and weights. rounds: each rival's runs in each half."""
    unknown = set(shapes) - set(SHAPES)
    if unknown:
        raise ValueError(f"There is no shape {sorted(unknown)[0]!r}; choose from {', '.join(SHAPES)}.")
    if rounds < 1:
        raise ValueError(f"The bench got {rounds} rounds; run at least 1.")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    with torch.inference_mode():
        verify(place, dtype)
        rates = measure_rates(place, dtype)
        found = []
        for name in shapes:
            for weight in ("mixed", "one") if name.startswith("klein") else WEIGHTS:
                found += _bench_shape(name, weight, place, dtype, rounds, rates)
    return found


def _bench_shape(name: str, weight: str, place: torch.device, dtype: torch.dtype, rounds: int, rates: Rates) -> list[Timing]:
    b, h, n, d = SHAPES[name]
    n = min(n, math.isqrt(CPU_SCORES) // 64 * 64 // 2) if place.type == "cpu" else n
    segments, log_weight = problem(b, n, weight)
    inputs = [torch.randn(b, n, 3, h, d, dtype=dtype, device=place).transpose(1, 3).unbind(2) for _ in range(SETS)]
    keys = n * (1 if weight == "zero" else 1.5 if weight == "half zero" else 1 if len(segments.queries) > 1 else 2)
    floor = rates.floor((b, h, n, d), keys, dtype.itemsize)
    found = []
    for mode in ("eager", "graph") if place.type == "cuda" else ("eager",):
        calls = right_ones(rivals(segments, log_weight, place, mode), inputs[0], segments, log_weight)
        kernels = {rival: busiest(call, inputs[0]) for rival, call in calls.items()}
        turns = {rival: turned for rival, call in calls.items() if (turned := in_turn(call, inputs, mode))}
        halves = [_interleaved(turns, place, rounds) for _ in range(2)]
        for rival in turns:
            first, second = (half[rival] for half in halves)
            spread = (statistics.median(first), statistics.median(second))
            timing = (statistics.median(first + second), spread, floor, mode, kernels[rival])
            found.append(Timing(name, (b, h, n, d), weight, rival, *timing))
    return found


def right_ones(calls: dict[str, Call], given: Sequence[Tensor], segments: Segments, log_weight: list) -> dict[str, Call]:
    """Those that run here and whose first 16 queries of every segment are right. Raises FloatingPointError if ours is not one."""
    found = {}
    q, k, v = (tensor.double().cpu() for tensor in given)
    full = full_weight(log_weight, q, segments).double()
    for rival, call in calls.items():
        try:
            got = call(*given)
            for number, (start, stop) in enumerate(segments.query_ranges() if rival != "one stream" else []):
                at = slice(start, min(start + 16, stop))
                few = Segments((at.stop - start,), segments.sources)
                want, _ = segment_attention_reference(q[:, :, at], k, v, few, full[:, :, number : number + 1], scale=q.shape[3] ** -0.5)
                check(rival, got[:, :, at].cpu(), want)
        except (RuntimeError, FloatingPointError):
            if rival == "ours":
                raise
            continue  # a rival that cannot run here, or is wrong, has no time
        found[rival] = call
    return found


def busiest(call: Call, given: Sequence[Tensor]) -> str:
    """The kernel, or on a CPU the operator, that takes most of a call's time."""
    cuda = given[0].device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        call(*given)
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    return max(seen.key_averages(), key=lambda event: getattr(event, spent)).key


def in_turn(call: Call, inputs: list, mode: str) -> list[Callable[[], object]]:
    """One call for each set of inputs; as replays, or none of a call that a CUDA graph does not hold."""
    plain = [lambda given=given: call(*given) for given in inputs]
    if mode == "eager":
        return plain
    try:
        return [captured(one) for one in plain]
    except RuntimeError:
        torch.cuda.synchronize()
        return []


def captured(call: Callable[[], object]) -> Callable[[], object]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def problem(rows: int, tokens: int, weight: str) -> tuple[Segments, list]:
    """Pairs of streams; or, for one row, text, image and depth in a joint sequence."""
    if rows == 1:
        text = min(512, tokens // 16)
        image = (tokens - text) // 2
        other = math.log(0.4) if weight == "mixed" else 0.0
        return Segments.joint((text, image, tokens - text - image)), [[0.0, 0.0, 0.0], [0.0, 0.0, other], [0.0, other, 0.0]]
    values = [WEIGHTS[weight]] * rows if WEIGHTS[weight] is not None else [0.0, 0.4] * (rows // 2)
    logs = [[[0.0, math.log(value) if value else -math.inf]] for value in values]
    return Segments.coupled(tokens, tuple(row ^ 1 for row in range(rows))), logs


def rivals(segments: Segments, log_weight: list, place: torch.device, mode: str = "eager") -> dict[str, Call]:
    """In a graph our weights are on the device, as nothing on the host can be read there."""
    ours_weight = torch.tensor(log_weight, device=place) if mode == "graph" else log_weight

    def ours(q, k, v):
        return segment_attention(q, k, v, segments, ours_weight)

    def forced(name):
        def call(q, k, v):
            with use_backend(name):
                return ours(q, k, v)

        return call

    bias: dict[torch.dtype, Tensor] = {}

    def masked(q, k, v):
        """Copies of the sources side by side, and a mask in the queries' dtype."""
        if q.dtype not in bias:
            bias[q.dtype] = bias_row(q, segments, full_weight(log_weight, q, segments)).to(q.dtype)
        return F.scaled_dot_product_attention(q, beside(k, segments), beside(v, segments), attn_mask=bias[q.dtype])

    def masked_by(backend):
        def call(q, k, v):
            with sdpa_kernel(backend):
                return masked(q, k, v)

        return call

    found: dict[str, Call] = {"ours": ours, "concat and mask": masked, "one stream": F.scaled_dot_product_attention}
    if len(segments.queries) == 1:
        found["two calls, gather, merge"] = two_calls(segments, log_weight, place)
    if place.type == "cuda":
        found |= {f"concat and mask, {b.name.lower()}": masked_by(b) for b in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)}
        found |= {"flex attention": flex(segments, log_weight, place)}
        found |= {"flex attention, max-autotune": flex(segments, log_weight, place, tuning="max-autotune-no-cudagraphs")}
        found |= {"ours, triton": forced("triton"), "ours, composition": forced("composition")}
    return found


def _interleaved(turns: dict[str, list], place: torch.device, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {rival: [] for rival in turns}
    for turn in range(rounds + 1):
        for rival, calls in turns.items():
            elapsed = _time(calls[turn % len(calls)], place)
            if turn:  # the first warms up
                times[rival].append(elapsed)
    return times


def _time(call: Callable[[], object], place: torch.device) -> float:
    """Milliseconds."""
    if place.type != "cuda":
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def measure_rates(place: torch.device, dtype: torch.dtype) -> Rates:
    """Of a large matrix product and a large copy; exponentials on a CPU from a vector that its cache holds, on a GPU 16 a clock and
    multiprocessor, which is what all since sm_80 do.
    """
    cuda = place.type == "cuda"
    side, long = (8192, 1 << 28) if cuda else (1024, 1 << 24)
    a, flat, row = torch.randn(side, side, dtype=dtype, device=place), torch.zeros(long, device=place), torch.randn(1 << 16)
    into = torch.empty_like(flat)
    product, copy = (statistics.median(_time(call, place) for _ in range(8)) for call in (lambda: a @ a, lambda: into.copy_(flat)))
    if cuda:
        card = torch.cuda.get_device_properties(place)
        exponentials = 16e3 * card.multi_processor_count * getattr(card, "clock_rate", 0) or None  # kilohertz
    else:
        exponentials = 1e3 * row.numel() / statistics.median(_time(row.exp, place) for _ in range(8))
    return Rates(2e3 * side**3 / product, 8e3 * long / copy, exponentials)


def as_lines(found: list[Timing]) -> list[str]:
    """A table: milliseconds, the rival's time over ours in the same mode (of ours by its own call, where a graph does not hold it), the
    floor's share, the kernel that took most of it.
    """
    ours = {(t.shape, t.weight, t.mode): t.median for t in found if t.rival == "ours"}
    row = "{:14s} {:>16s} {:9s} {:5s} {:34s} {:>9s} {:>19s} {:>9s} {:>8s} {}".format
    lines = [row("shape", "b h n d", "weight", "mode", "rival", "ms", "halves", "over ours", "of floor", "kernel")]
    for t in found:
        size, halves = " ".join(map(str, t.size)), f"{t.spread[0]:.2f} {t.spread[1]:.2f}"
        ratio = t.median / ours.get((t.shape, t.weight, t.mode), ours[t.shape, t.weight, "eager"])
        numbers = (f"{t.median:.2f}", halves, f"{ratio:.2f}", f"{t.floor / t.median:.2f}")
        lines.append(row(t.shape, size, t.weight, t.mode, t.rival, *numbers, t.kernel[:60]))
    return lines


def write_record(path: Path, found: list[Timing]) -> None:
    """JSON: the machine beside the times."""
    on = {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    path.write_text(json.dumps({**on, **versions, "times": [asdict(timing) for timing in found]}, indent=1) + "\n", encoding="utf-8")
