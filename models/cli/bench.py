"""The command `spatialweave bench`."""

from __future__ import annotations

import argparse

from .option_types import check_device, number, path, whole
from .output_lines import write_line


def add_bench(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    option("what", choices=["kernels"], help="what to measure: the attention op and alternatives in torch")
    option("--json", type=path, help="also write the times to this file")
    option("--plot", type=path, help="plot the ratios to this file (PNG)")
    option("--device", help="cuda, cuda:1 or cpu; by default a GPU where there is one")
    rounds = option("--rounds", type=whole(1, 10**6))
    rounds.help = "runs of each alternative in each half of the run; by default 25 on a GPU, 12 elsewhere"
    seconds = option("--seconds", type=number(0.001, 10**6))
    seconds.help = "time for the rounds of one weight, mode and half: as many as fit, at least 3"
    option("--shape", action="append", help="only this shape, by its name in the table; may be repeated")
    weight = option("--weight", action="append")
    weight.help = "only this weight: zero, mixed, one or 'half zero'; may be repeated"
    flex = option("--flex", choices=["no", "default", "max-autotune"])
    flex.help = (
        "FlexAttention on a GPU: not at all, compiled once for a shape, or a second time with max-autotune, "
        "which takes minutes; by default the last"
    )
    plan = option("--plan", choices=["h200"])
    plan.help = (
        "instead of --rounds, --seconds, --weight and --flex a run for that card that begins no shape after "
        "eight minutes: the op's cases, other tiles of the kernel, the alternatives, and conclusions"
    )
    command.set_defaults(run=_run_bench)


def _run_bench(options: argparse.Namespace) -> None:
    from ...kernels.bench.report import as_lines, write_record
    from ...kernels.bench.results import Run
    from ...kernels.bench.run import SHAPES, WEIGHTS, bench

    given = (options.rounds, options.seconds, options.weight, options.flex)
    if options.plan and any(value is not None for value in given):
        raise ValueError(
            "Expected --plan without --rounds, --seconds, --weight and --flex, which it sets, got both. "
            "Remove one."
        )

    def keep(run: Run) -> None:
        if options.json:  # after every weight, so that an interrupted run keeps what it has measured
            write_record(options.json, run)

    measured = bench(
        check_device(options.device),
        rounds=options.rounds,
        seconds=options.seconds,
        shapes=tuple(options.shape or SHAPES),
        weights=tuple(options.weight or WEIGHTS),
        flex=options.flex or "max-autotune",
        after=keep,
        plan=options.plan,
    )
    for line in as_lines(measured):
        write_line(line)
    if options.plot:
        from ...kernels.bench.plot import draw

        draw(measured).save(options.plot, format="PNG")
