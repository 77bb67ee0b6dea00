"""Output of an evaluation: a JSON file, a Markdown table, a score with its error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Write JSON, and create the folder. An OSError is one message."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(figures), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(f"Cannot write {path}: {error.strerror or error}. Choose another folder.") from error


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def format_figure(figure: Mapping[str, Any]) -> str:
    """Mean ± standard error, to the error's second digit; "none" if no image had anything to measure."""
    mean, error = figure["mean"], figure["error"]
    if mean is None:
        return "none"
    digits = 3 if not error else max(0, min(6, 1 - math.floor(math.log10(error))))
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
