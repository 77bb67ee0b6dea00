"""The plot of w: which cells are lit, and where the maps' pass may stop, read off the picture's pixels."""

import numpy as np
import pytest

from spatialweave.models.intrinsic_ldm import plot
from spatialweave.models.intrinsic_ldm.layers import Layer
from spatialweave.models.intrinsic_ldm.schedules import OFF, Constant, Curve, Cut, Drop, Gaussian

LAYERS = [
    Layer(f"layer {block}", (block,), stage, block) for block, stage in enumerate([1, 1, 2, 5, 8, 9, 9])
]


def cells(picture, layers, times):
    """The colors (layers, times, 3) at the middle of each cell."""
    rows = [plot.TOP + round(plot.FIELD[1] * (index + 0.5) / layers) for index in range(layers)]
    columns = [plot.LEFT + round(plot.FIELD[0] * (index + 0.5) / times) for index in range(times)]
    return picture[rows][:, columns].astype(int)


def lit(picture, layers, times, top=1.0):
    """w of each cell by its color."""
    span = plot.HIGH - plot.LOW
    return ((cells(picture, layers, times) - plot.LOW) @ span / (span @ span)) * top


def line(picture):
    """The column of the line, or None; the field has no other pixel of its color."""
    field = picture[plot.TOP : plot.TOP + plot.FIELD[1], plot.LEFT : plot.LEFT + plot.FIELD[0]]
    columns = np.flatnonzero((field == plot.STOPPED).all(axis=(0, 2)))
    return None if not len(columns) else int(columns.mean().round())


def test_drop_lights_its_layers_from_tau_on():
    times = [999.0, 901.0, 900.0, 500.0, 0.0]
    w = lit(plot.plot_weights(Drop(frozenset({2, 8})), LAYERS, "stages", times, steps=True), 7, 5)
    want = np.outer([0, 0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1])
    np.testing.assert_allclose(w, want, atol=0.01)
    blocks = lit(plot.plot_weights(Drop(frozenset({0, 6})), LAYERS, "blocks", times, steps=True), 7, 5)
    np.testing.assert_allclose(blocks, np.outer([1, 0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1]), atol=0.01)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_gaussian_lights_every_layer_by_its_equation(alpha):
    times = [950.0, 850.0, 800.0, 700.0, 100.0]
    w = lit(
        plot.plot_weights(Gaussian(alpha), LAYERS, "blocks", times, steps=True), 7, 5, top=max(1.0, alpha)
    )
    want = alpha * np.exp(-(((np.array(times) - 800) / 100) ** 2))
    np.testing.assert_allclose(w, np.tile(want, (7, 1)), atol=0.01 * max(1.0, alpha))


STOPS = {
    "gaussian, cut": (Cut(Gaussian(), 0.001), 3),  # (t - 800) / 100 beyond 2.63 is below it: from 537 on
    "gaussian": (Gaussian(), None),
    "drop": (Cut(Drop(frozenset({2})), 0.001), None),
    "curve": (Cut(Curve(((400.0, 0.0), (900.0, 1.0)))), 4),
    "a curve that rises again": (Cut(Curve(((0.0, 1.0), (100.0, 0.0), (900.0, 0.0)))), None),
    "constant": (Constant(1.0), None),
    "off": (OFF, 0),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_line_stands_where_the_maps_may_stop(name):
    """Where a run without `keep_maps` stops: from there on no layer has a weight."""
    schedule, stop = STOPS[name]
    times = [999.0, 800.0, 540.0, 530.0, 400.0, 200.0, 0.0]
    assert plot.find_stop(schedule, times) == stop
    picture = plot.plot_weights(schedule, LAYERS, "stages", times, steps=True)
    assert line(picture) == (None if stop is None else pytest.approx(plot.FIELD[0] * stop / 7, abs=1))
    table = plot.weight_table(schedule, LAYERS, "stages", times)
    assert stop is None or (not table[:, stop:].any() and (stop == 0 or table[:, stop - 1].any()))
    label = picture[plot.TOP - 15 : plot.TOP - 4, plot.LEFT :].astype(int)
    blue = (label[..., 2] - label[..., 0] > 60).sum()  # of letters, whose edges are blended with the paper
    assert (blue > 100) == (stop is not None)
