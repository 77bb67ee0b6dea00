"""Published figures of depth and pose benchmarks, with their sources: published.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.text_files import read_text

PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class PublishedRow:
    """One model's figures on one dataset, as printed."""

    model: str
    figures: tuple[str, ...]  # depth: AbsRel and delta1 in percent; pose: AUC@30 in percent
    alignment: str
    source: str


def published_rows(task: Literal["depth", "pose"], dataset: str) -> list[PublishedRow]:
    """The rows of a dataset, in the order of their table; none for a dataset that no table has."""
    rows = []
    for table in json.loads(read_text(PUBLISHED))[task]:
        if dataset not in table["datasets"]:
            continue
        column = table["datasets"].index(dataset)
        for model, cells in table["rows"].items():
            if cells[column] is not None:
                rows.append(PublishedRow(model, tuple(cells[column]), table["alignment"], table["source"]))
    return rows
