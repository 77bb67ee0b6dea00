"""The machine: its description, its measured throughput, and the roofline time of an attention."""

from __future__ import annotations

import importlib.metadata
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Rates:
    """Throughput per second: FLOP of a large matmul, bytes read and written, exponentials.

    `exponentials` is None where the clock of a GPU is unknown.
    """

    operations: float
    bytes: float
    exponentials: float | None

    def floor(self, size: tuple[int, int, int, int], keys: float, width: int) -> float:
        """Roofline time in ms for size (b, h, n, d): the slowest of matmuls, memory traffic and exponentials.

        `keys`: per query; `width`: bytes per value.
        """
        b, h, n, d = size
        scores = b * h * n * keys
        least = [4 * scores * d / self.operations, 4 * b * h * n * d * width / self.bytes]
        return 1e3 * max(least + ([scores / self.exponentials] if self.exponentials else []))


def measure_rates(place: torch.device, dtype: torch.dtype) -> Rates:
    """Measure a large matmul, a large copy, and exponentials.

    Exponentials on a CPU: of a vector that fits its cache; on a GPU: 16 per clock and multiprocessor, the
    rate of every architecture since sm_80.
    """
    cuda = place.type == "cuda"
    side, long = (8192, 1 << 28) if cuda else (1024, 1 << 24)
    a, flat, row = (
        torch.randn(side, side, dtype=dtype, device=place),
        torch.zeros(long, device=place),
        torch.randn(1 << 16),
    )
    into = torch.empty_like(flat)
    product, copy = (
        statistics.median(time_once(call, place) for _ in range(9))
        for call in (lambda: a @ a, lambda: into.copy_(flat))
    )
    if cuda:
        exponentials = (
            16e3 * torch.cuda.get_device_properties(place).multi_processor_count * clock_of(place) or None
        )
    else:
        exponentials = 1e3 * row.numel() / statistics.median(time_once(row.exp, place) for _ in range(9))
    return Rates(2e3 * side**3 / product, 8e3 * long / copy, exponentials)


def clock_of(place: torch.device) -> float:
    """The GPU's maximum clock in kHz; where torch does not report it, the current clock; else 0."""
    rate = getattr(torch.cuda.get_device_properties(place), "clock_rate", 0)
    try:
        return rate or 1e3 * torch.cuda.clock_rate(place)
    except Exception:  # noqa: BLE001 - NVML raises errors of its own
        return 0.0


def time_once(call: Callable[[], object], place: torch.device) -> float:
    """Milliseconds between CUDA events; with one CPU thread of process time, which ignores other load."""
    if place.type != "cuda":
        clock = (
            time.process_time if place.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        )
        began = clock()
        call()
        return 1e3 * (clock() - began)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def describe_machine(place: torch.device) -> dict[str, object]:
    """What a reader needs to interpret the times."""
    gpu = place.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(place) if gpu else place.type,
        "threads": torch.get_num_threads(),
        "driver": driver_version() if gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "triton": triton_version(),
    }


def driver_version() -> str | None:
    """NVIDIA's driver version on Linux, else None."""
    found = (
        re.search(r"Kernel Module\D*([\d.]+)", DRIVER.read_text(encoding="utf-8"))
        if DRIVER.is_file()
        else None
    )
    return found[1] if found else None


def triton_version() -> str | None:
    """The installed version, under either package name; triton is not imported."""
    installed = {
        found.metadata["Name"]: found.version for found in importlib.metadata.distributions(name="triton")
    }
    installed |= {
        found.metadata["Name"]: found.version
        for found in importlib.metadata.distributions(name="triton-windows")
    }
    return next(iter(installed.values()), None)
