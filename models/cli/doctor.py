"""The command `spatialweave doctor`."""

from __future__ import annotations

import argparse

from .output_lines import write_line


def add_doctor(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_run_doctor)


def _run_doctor(options: argparse.Namespace) -> None:
    from ...kernels.doctor import report

    for line in report():
        write_line(line)
