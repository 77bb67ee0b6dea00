"""The loss picture: round ticks, curves where their numbers are."""

import json

import numpy as np
import pytest
from PIL import Image

from spatialweave.models.core.training import plot


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-2, 1, [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]),
        (-0.2, 0.3, [0.8, 1.0, 1.2, 1.4, 1.6, 1.8]),
        (0.0, 0.01, [1.0, 1.005, 1.01, 1.015, 1.02]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert plot.ticks(low, high) == pytest.approx(expected)


def test_smoothing_keeps_a_constant_and_short_curves():
    assert plot.smooth([(i, 3.0) for i in range(500)])[-1] == (499, pytest.approx(3))
    assert plot.smooth([(1, 5.0), (2, 1.0)]) == [(1, 5.0), (2, 1.0)]


def test_curve_falls_from_the_upper_left_to_the_lower_right(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(
            json.dumps({"step": i, "loss": 10 / i, "rgb": 10 / i, "lr": 1, "grad_norm": 5}) + "\n"
            for i in range(1, 101)
        )
    )
    plot.plot_log(log, tmp_path / "loss.png")
    picture = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    inked = (abs(picture - np.array(plot.COLORS[0])).sum(-1) == 0)[plot.TOP :]
    rows, columns = inked.nonzero()
    assert rows[columns < columns.min() + 20].mean() < 40 and rows[columns > columns.max() - 20].mean() > 380


def test_log_without_positive_values_gives_an_empty_picture(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.0}\n')
    plot.plot_log(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size == plot.SIZE
