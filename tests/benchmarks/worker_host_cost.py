"""What a call of the attention op costs the host, before the card or the processor has anything to do.

    python tests/benchmarks/worker_host_cost.py [--rounds 25] [--json FILE]

Processor microseconds a call on one thread, tiny tensors, every kind of call in every round; medians, and the
median of the ratios to two calls with gather and merge in the same round. The Triton rows compile the kernel
for sm_90 in earnest and hand it to a driver that launches nothing, so they are the cost before the driver.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from spatialweave.kernels import Segments, cross_domain_attention, segment_attention
from spatialweave.models.intrinsic_ldm.attention import attend_domains
from spatialweave.models.intrinsic_ldm.rows import Rows

CALLS, BASE = 30, "two calls, gather, merge"
ROWS, HEADS, TOKENS, WIDTH = 4, 10, 16, 64


def tensors(dtype):
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, TOKENS, HEADS * WIDTH)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def split(tensor):
    return tensor.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)


def composition_calls():
    """Name to call; all take and return (b, n, h * d)."""
    q, k, v = tensors(torch.float32)
    partner, mixed = torch.tensor([1, 0, 3, 2]), torch.tensor([0.4, 1.0, 0.4, 1.0])
    log_weight, rows = mixed.log()[:, None, None], Rows((0, 1), 1)
    with_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def plain():
        return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)

    def two_calls():
        own, keys, values = split(q), split(k), split(v)
        out, lse = with_lse(own, keys, values)
        more, more_lse = with_lse(own, keys[partner], values[partner])
        share = torch.sigmoid(more_lse + log_weight - lse)[..., None]
        return torch.lerp(out, more, share).transpose(1, 2).flatten(2)

    def attention_alone():
        """The three attention calls that the composition makes, on views taken beforehand."""
        for given in views:
            with_lse(*given)

    halves = [[split(tensor)[first::2] for tensor in (q, k, v)] for first in (0, 1)]
    joined = [
        tensor.as_strided((2, HEADS, 2 * TOKENS, WIDTH), (2 * tensor.stride(0), WIDTH, HEADS * WIDTH, 1))
        for tensor in (k, v)
    ]
    views = (halves[0], (halves[0][0], *halves[1][1:]), (halves[1][0], *joined))
    segments = Segments.joint((4, 6, 6))
    table = [[0.0, 0.0, 0.0], [0.0, 0.0, -0.7], [0.0, -0.2, 0.0]]
    return {
        "plain attention": plain,
        BASE: two_calls,
        "the three attention calls of the next row, alone": attention_alone,
        "ours, mixed weights": lambda: cross_domain_attention(q, k, v, mixed, heads=HEADS),
        "ours, all 0": lambda: cross_domain_attention(q, k, v, 0.0, heads=HEADS),
        "ours, all 1": lambda: cross_domain_attention(q, k, v, 1.0, heads=HEADS),
        "ours, a joint sequence": lambda: segment_attention(q, k, v, segments, heads=HEADS),
        "ours, a joint sequence with a table": lambda: segment_attention(
            q, k, v, segments, table, heads=HEADS
        ),
        "attend_domains": lambda: attend_domains(q, k, v, rows, 0.4, heads=HEADS),
    }


def triton_calls():
    if importlib.util.find_spec("triton") is None:
        return {}
    file = Path(__file__).resolve().parents[1] / "kernels" / "fake_driver.py"
    spec = importlib.util.spec_from_file_location("spatialweave_fake_driver", file)
    fake_driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake_driver)
    fake_driver.install(setattr)
    q, k, v = tensors(torch.bfloat16)
    mixed, rows = torch.tensor([0.4, 1.0, 0.4, 1.0]), Rows((0, 1), 1)
    segments = Segments.coupled(TOKENS, (1, 0, 3, 2))
    logs = torch.tensor([[[[0.0, -0.9]]], [[[0.0, 0.0]]]] * 2)
    return {
        "Triton, mixed weights": lambda: cross_domain_attention(q, k, v, mixed, heads=HEADS),
        "Triton, segments and a table": lambda: segment_attention(q, k, v, segments, logs, heads=HEADS),
        "Triton, attend_domains": lambda: attend_domains(q, k, v, rows, 0.4, heads=HEADS),
    }


def measure(calls, rounds):
    times = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in reversed(calls) if number % 2 else calls:
            calls[name]()
            began = time.process_time()
            for _ in range(CALLS):
                calls[name]()
            if number:  # the first round warms up
                times[name].append((time.process_time() - began) / CALLS * 1e6)
    base = times[BASE]
    return {
        name: {
            "microseconds": statistics.median(each),
            "ratio": statistics.median(own / other for own, other in zip(each, base, strict=True)),
        }
        for name, each in times.items()
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        calls = composition_calls()
        calls |= triton_calls()
        found = measure(calls, options.rounds)
    for name, row in found.items():
        sys.stdout.write(f"{name:52s} {row['microseconds']:8.1f} us   {row['ratio']:5.2f}\n")
    if options.json:
        figures = {"torch": torch.__version__, "shape": [ROWS, HEADS, TOKENS, WIDTH], "calls": found}
        options.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
