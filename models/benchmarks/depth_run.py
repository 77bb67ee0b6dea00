"""A depth benchmark: every sample of a folder through a predictor, scored, kept in a file, and as a table."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.evaluation.benchmark import (
    ALIGNMENT_WORDS,
    FIGURES,
    DepthAlignment,
    score_depth_sample,
)
from .depth_folders import DepthFolder
from .predictors import DepthPredictor
from .published import published_rows
from .report import table_lines
from .work_file import WorkFile


def run_depth_benchmark(
    folder: DepthFolder,
    predictor: DepthPredictor,
    alignments: Sequence[DepthAlignment],
    work: Path,
    *,
    limit: int | None = None,
    progress=iter,
) -> dict[str, Any]:
    """Figures of each alignment: means over the samples, the first `limit` of them.

    Samples whose figures are in the file `work` are not predicted again; ValueError if that file is of
    another model, dataset or setting.
    """
    names = folder.names[:limit]
    settings = {
        "benchmark": "depth",
        "dataset": folder.dataset,
        "layout": folder.layout,
        "model": predictor.name,
        "settings": dict(predictor.settings),
        "alignments": list(alignments),
    }
    file = WorkFile(work, settings)
    done = file.read()
    numbers = {name: number for number, name in enumerate(folder.names)}
    for name in progress([name for name in names if name not in done]):
        sample = folder.read(name)
        began = time.perf_counter()
        view = predictor(sample.image, numbers[name])
        seconds = time.perf_counter() - began
        figures = {each: score_depth_sample(view, sample, each) for each in alignments}
        done[name] = {"figures": figures, "seconds": round(seconds, 3), "pixels": int(sample.mask.sum())}
        file.add(name, done[name])
    rows = [done[name] for name in names]
    means = {each: _means(row["figures"][each] for row in rows) for each in alignments}
    seconds = statistics.fmean(row["seconds"] for row in rows)
    return settings | {"samples": len(rows), "seconds_per_image": round(seconds, 3), "figures": means}


def _means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    rows = list(rows)
    return {name: statistics.fmean(row[name] for row in rows) for name in (*FIGURES, "missing")}


def depth_table(result: Mapping[str, Any]) -> list[str]:
    """Markdown: our rows, then the published ones; AbsRel and delta1 in percent, as papers have them."""
    head = ["model", "AbsRel", "delta1", "RMSE", "alignment", "source"]
    rows = []
    for alignment, figures in result["figures"].items():
        numbers = [f"{100 * figures['absrel']:.2f}", f"{100 * figures['delta1']:.1f}"]
        numbers.append(f"{figures['rmse']:.4g}")
        source = f"this run, {result['samples']} images"
        rows.append([result["model"], *numbers, ALIGNMENT_WORDS[alignment], source])
    for row in published_rows("depth", result["dataset"]):
        rows.append([row.model, *row.figures, "-", row.alignment, row.source])
    missing = max(figures["missing"] for figures in result["figures"].values())
    lines = [f"{result['dataset']}, {result['samples']} images, {result['seconds_per_image']} s an image", ""]
    lines += table_lines(head, rows)
    if missing:
        lines += ["", f"{missing:.2%} of the pixels had no predicted depth and count with the full error."]
    return lines


def several_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: AbsRel / delta1 in percent of several datasets side by side, ours above the published."""
    datasets = [result["dataset"] for result in results]
    rows = []
    for alignment in results[0]["figures"]:
        cells = [result["figures"][alignment] for result in results]
        shown = [f"{100 * cell['absrel']:.2f} / {100 * cell['delta1']:.1f}" for cell in cells]
        rows.append([results[0]["model"], *shown, ALIGNMENT_WORDS[alignment], "this run"])
    published = [{row.model: row for row in published_rows("depth", name)} for name in datasets]
    for model in dict.fromkeys(model for rows_of in published for model in rows_of):
        known = [rows_of.get(model) for rows_of in published]
        source = next(row for row in known if row is not None)
        shown = ["-" if row is None else " / ".join(row.figures) for row in known]
        rows.append([model, *shown, source.alignment, source.source])
    return table_lines(["model", *datasets, "alignment", "source"], rows)


def save_result(path: Path, result: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write the figures as JSON."""
    from ..core.export.files import write_file

    write_file(path, (json.dumps(result, indent=2) + "\n").encode("utf-8"))
