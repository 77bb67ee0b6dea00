"""Interleaved timing of calls, eager or as CUDA graph replays, and the dominant kernel of each call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from .machine import time_once
from .rivals import Call

LEAST_ROUNDS = 3  # whatever time there is
Turns = dict[str, list[Callable[[], object]]]  # by rival


def in_turn(calls: dict[str, Call], inputs: list, mode: str) -> tuple[Turns, list[str]]:
    """Per rival one call per set of inputs, or one replay of a CUDA graph of them all.

    Also one line per rival that cannot be captured.
    """
    found, unheld = Turns(), []
    for rival, call in calls.items():
        plain = [lambda given=given, call=call: call(*given) for given in inputs]
        try:
            found[rival] = plain if mode == "eager" else [captured(plain)]
        except RuntimeError as error:
            torch.cuda.synchronize()
            unheld.append(f"{rival} has no replay: {sentence(error)}")
    return found, unheld


def captured(calls: list[Callable[[], object]]) -> Callable[[], object]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        calls[0]()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def interleaved(
    turns: Turns, place: torch.device, rounds: int, seconds: float | None, *, held: int = 1
) -> dict[str, list[float]]:
    """Milliseconds per call, round by round, with every rival in each round.

    The first round is warm-up and gives the number of rounds that fit in `seconds`, at least 3. `held`: calls
    per graph replay, which counts as that many rounds.
    """
    times: dict[str, list[float]] = {rival: [] for rival in turns}
    turn, rounds = 0, math.ceil(rounds / held)
    while turn <= rounds:
        elapsed = {rival: time_once(calls[turn % len(calls)], place) for rival, calls in turns.items()}
        if turn:
            for rival, of in elapsed.items():
                times[rival].append(of / held)
        elif seconds is not None:
            rounds = min(rounds, max(LEAST_ROUNDS, int(1e3 * seconds / max(sum(elapsed.values()), 1e-9))))
        turn += 1
    return times


def busiest(calls: dict[str, Call], given: Sequence[Tensor]) -> dict[str, str]:
    """Per call the kernel (on a CPU the operator) with most of its time; empty where profiling fails."""
    cuda = given[0].device.type == "cuda"
    try:
        events = profiled(calls, given, cuda)
    except Exception:  # noqa: BLE001 - the names are optional
        return {}
    where = DeviceType.CUDA if cuda else DeviceType.CPU
    spans = {
        event.name: event.time_range
        for event in events
        if event.name in calls and event.device_type == DeviceType.CPU
    }
    spent: dict[str, dict[str, float]] = {rival: {} for rival in spans}
    for event in (event for event in events if event.device_type == where and event.name not in calls):
        for rival in (
            rival for rival, span in spans.items() if span.start <= event.time_range.start <= span.end
        ):
            took = event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
            spent[rival][event.name] = spent[rival].get(event.name, 0.0) + took
    return {rival: max(times, key=lambda name: times[name]) for rival, times in spent.items() if times}


def profiled(calls: dict[str, Call], given: Sequence[Tensor], cuda: bool) -> list:
    """Events of one call of each, in a record_function of its name that ends after synchronization."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        for rival, call in calls.items():
            with record_function(rival):
                call(*given)
                if cuda:
                    torch.cuda.synchronize()
    return list(seen.events() or [])


def sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
