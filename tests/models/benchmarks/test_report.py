"""Figures as text, tables and files."""

import json

import pytest

from spatialweave.models.benchmarks.report import format_figure, table_lines, write_figures


@pytest.mark.parametrize(
    "mean, error, text",
    [
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (123.4, 5.0, "123.4 ± 5.0"),
        (0.5, None, "0.500"),
        (2.0, 0.0, "2.000 ± 0.000"),
        (None, None, "none"),
    ],
)
def test_a_figure_has_the_digits_of_its_error(mean, error, text):
    assert format_figure({"mean": mean, "error": error}) == text


def test_a_table_has_a_rule_under_its_head():
    assert table_lines(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_figures_are_written_into_a_new_folder(tmp_path):
    write_figures(tmp_path / "new" / "figures.json", {"absrel": 0.25})
    assert json.loads((tmp_path / "new" / "figures.json").read_text(encoding="utf-8")) == {"absrel": 0.25}


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="Cannot write .*taken.*. Choose another folder"):
        write_figures(tmp_path / "taken" / "figures.json", {})
