"""`spatialweave bench kernels`: the attention op against what one would write instead, interleaved in one run, after its checks.

Times are medians; a rival whose numbers are wrong has none. Shapes are those of I-LDM's backbones and of a joint sequence.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .dispatch import use_backend
from .segment_attention import segment_attention
from .segment_attention.cases import CASES
from .segment_attention.composition import attend_with_lse
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
    """Milliseconds: the median, and the medians of the two halves of the run. `floor` is the part of the time the products alone need."""

    shape: str
    size: tuple[int, int, int, int]
    weight: str
    rival: str
    median: float
    spread: tuple[float, float]
    floor: float


Call = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        rate = product_rate(place, dtype)
        found = []
        for name in shapes:
            for weight in ("mixed", "one") if name.startswith("klein") else WEIGHTS:
                found += _bench_shape(name, weight, place, dtype, rounds, rate)
    return found


def _bench_shape(name: str, weight: str, place: torch.device, dtype: torch.dtype, rounds: int, rate: float) -> list[Timing]:
    b, h, n, d = SHAPES[name]
    n = min(n, math.isqrt(CPU_SCORES) // 64 * 64 // 2) if place.type == "cpu" else n
    segments, log_weight = problem(b, n, weight)
    made = (torch.randn(b, n, 3, h, d, dtype=dtype, device=place).transpose(1, 3).unbind(2) for _ in range(SETS))
    inputs = [tuple(part for part in qkv) for qkv in made]
    few = Segments((16,), segments.sources) if len(segments.queries) == 1 else None
    calls: dict[str, Call] = {}
    for rival, call in rivals(segments, log_weight, place).items():
        try:
            got = call(*inputs[0])
            if few is not None and rival != "one stream":
                q, k, v = (tensor.double().cpu() for tensor in inputs[0])
                full = full_weight(log_weight, q, segments).double()
                check(rival, got[:, :, :16].cpu(), segment_attention_reference(q[:, :, :16], k, v, few, full, scale=d**-0.5)[0])
        except (RuntimeError, FloatingPointError):
            if rival == "ours":
                raise
            continue  # a rival that cannot run here, or is wrong, has no time
        calls[rival] = call
    halves = [_interleaved(calls, inputs, place, rounds) for _ in range(2)]
    keys = n * (1 if weight == "zero" else 1.5 if weight == "half zero" else 1 if len(segments.queries) > 1 else 2)
    floor = 4e3 * b * h * n * keys * d / rate
    return [
        Timing(name, (b, h, n, d), weight, rival, statistics.median(halves[0][rival] + halves[1][rival]),
               (statistics.median(halves[0][rival]), statistics.median(halves[1][rival])), floor)
        for rival in calls
    ]  # fmt: skip


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


def rivals(segments: Segments, log_weight: list, place: torch.device) -> dict[str, Call]:
    def ours(q, k, v):
        return segment_attention(q, k, v, segments, log_weight)

    def forced(name):
        def call(q, k, v):
            with use_backend(name):
                return segment_attention(q, k, v, segments, log_weight)

        return call

    def masked(q, k, v):
        """Copies of the sources side by side, and a mask in the queries' dtype."""
        sources = [(list(rows), slice(s.start, s.start + s.length)) for rows, s in zip(segments.rows(q.shape[0]), segments.sources)]
        keys, values = (torch.cat([tensor[rows, :, at] for rows, at in sources], 2) for tensor in (k, v))
        bias = bias_row(q, segments, full_weight(log_weight, q, segments)).to(q.dtype)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)

    def masked_by(backend):
        def call(q, k, v):
            with sdpa_kernel(backend):
                return masked(q, k, v)

        return call

    found: dict[str, Call] = {"ours": ours, "concat and mask": masked, "one stream": F.scaled_dot_product_attention}
    if len(segments.queries) == 1:
        found["two calls, gather, merge"] = two_calls(segments, log_weight)
    if place.type == "cuda":
        found |= {f"concat and mask, {b.name.lower()}": masked_by(b) for b in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)}
        found |= {"flex attention": flex(segments, log_weight)} if len(segments.queries) == 1 else {}
        found |= {"ours, triton": forced("triton"), "ours, composition": forced("composition")}
    return found


def two_calls(segments: Segments, log_weight: list) -> Call:
    """What one writes first: attention to the own row, attention to the gathered partner, and a merge."""

    def call(q, k, v):
        rows = torch.tensor(segments.rows(q.shape[0])[1], device=q.device)
        shift = torch.tensor(log_weight, device=q.device)[:, :, 1, None]
        own, own_lse = attend_with_lse(q, k, v, scale=q.shape[3] ** -0.5)
        other, other_lse = attend_with_lse(q, k[rows], v[rows], scale=q.shape[3] ** -0.5)
        share = torch.sigmoid(other_lse + shift - own_lse)[..., None].to(q.dtype)
        return own + (other - own) * share

    return call


def flex(segments: Segments, log_weight: list) -> Call:
    """FlexAttention, compiled, over copied keys with a score modification."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def call(q, k, v):
        rows = torch.tensor(segments.rows(q.shape[0])[1], device=q.device)
        weights = torch.tensor(log_weight, device=q.device)[:, 0]
        own = k.shape[2]
        keys, values = torch.cat([k, k[rows]], 2), torch.cat([v, v[rows]], 2)
        return compiled(q, keys, values, score_mod=lambda score, b, h, m, n: score + weights[b, (n >= own).int()])

    return call


def _interleaved(calls: dict[str, Call], inputs: list, place: torch.device, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {rival: [] for rival in calls}
    for turn in range(rounds + 1):
        given = inputs[turn % len(inputs)]
        for rival, call in calls.items():
            elapsed = _time(lambda call=call, given=given: call(*given), place)
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


def product_rate(place: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product here and now."""
    side = 8192 if place.type == "cuda" else 1024
    a = torch.randn(side, side, dtype=dtype, device=place)
    return 2e3 * side**3 / statistics.median(_time(lambda: a @ a, place) for _ in range(8))


def as_lines(found: list[Timing]) -> list[str]:
    """A table: milliseconds, the rival's time over ours, the floor's share."""
    ours = {(t.shape, t.weight): t.median for t in found if t.rival == "ours"}
    lines = [f"{'shape':14s} {'b h n d':>16s} {'weight':9s} {'rival':34s} {'ms':>9s} {'halves':>19s} {'over ours':>9s} {'of floor':>8s}"]
    for t in found:
        size, halves = " ".join(map(str, t.size)), f"{t.spread[0]:.2f} {t.spread[1]:.2f}"
        ratio, share = t.median / ours[t.shape, t.weight], t.floor / t.median
        lines.append(f"{t.shape:14s} {size:>16s} {t.weight:9s} {t.rival:34s} {t.median:9.2f} {halves:>19s} {ratio:9.2f} {share:8.2f}")
    return lines


def write_record(path: Path, found: list[Timing]) -> None:
    """JSON: the machine beside the times."""
    on = {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    path.write_text(json.dumps({**on, **versions, "times": [asdict(timing) for timing in found]}, indent=1) + "\n", encoding="utf-8")
