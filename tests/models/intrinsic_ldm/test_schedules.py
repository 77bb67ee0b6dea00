"""The weights against the paper's numbers, and every way of asking for the impossible."""

import pytest

from spatialweave.models.intrinsic_ldm.layers import Layer, check_layers, middle_layers
from spatialweave.models.intrinsic_ldm.plot import plot_weights, weight_table
from spatialweave.models.intrinsic_ldm.schedules import (
    OFF,
    Constant,
    Curve,
    Cut,
    Drop,
    Gaussian,
    read_curve,
    read_layers,
)

PAPER = {
    999: 0.019, 950: 0.105, 900: 0.368, 850: 0.779, 800: 1, 750: 0.779, 700: 0.368, 650: 0.105, 600: 0.018,
    550: 0.0019, 500: 1e-4,
}
# SD2.1's sixteen layers: stage by block
STAGES = [1, 1, 2, 2, 3, 3, 5, 7, 7, 7, 8, 8, 8, 9, 9, 9]
LAYERS = [Layer(f"layer {block}", (), stage, block) for block, stage in enumerate(STAGES)]


@pytest.mark.parametrize("t", PAPER)
def test_gaussian_is_the_papers(t):
    assert Gaussian().weight(3, t) == pytest.approx(PAPER[t], rel=0.06, abs=6e-5)


def test_drop_stays_on_to_the_end_in_its_layers_only():
    drop = Drop(frozenset(range(3, 8)))
    assert [drop.weight(layer, 500) for layer in range(1, 10)] == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert [drop.weight(5, t) for t in (999, 900.001, 900, 0)] == [0, 0, 1, 1]


def test_both_readings_of_the_papers_layers():
    assert middle_layers(LAYERS, "stages") == {3, 4, 5, 6, 7}
    drop = Drop(frozenset(range(3, 8)))
    assert [layer.block for layer in LAYERS if drop.weight(layer.number("stages"), 0)] == [4, 5, 6, 7, 8, 9]
    assert [layer.block for layer in LAYERS if drop.weight(layer.number("blocks"), 0)] == [3, 4, 5, 6, 7]


def test_middle_of_a_transformer_is_forty_per_cent():
    layers = [Layer("", (), block, block) for block in range(28)]
    assert middle_layers(layers, "stages") == middle_layers(layers, "blocks") == set(range(8, 20))


def test_middle_of_sdxl_is_around_its_middle_stage():
    stages = [2] * 4 + [3] * 20 + [4] * 10 + [5] * 30 + [6] * 6
    assert (
        middle_layers([Layer("", (), stage, block) for block, stage in enumerate(stages)], "stages")
        == {3, 4, 5}
    )


def test_curve_is_straight_between_its_points_and_held_beyond():
    curve = read_curve("1000: 0, 800: 1\n600: 0.5; 200: 0.5")
    assert (
        [curve.weight(0, t) for t in (1000, 900, 800, 700, 600, 300, 0)]
        == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.5, 0.5])
    )


SCHEDULES = [
    Drop(frozenset({1}), 500), Gaussian(), Gaussian(tau=200), Constant(0.3), OFF,
    read_curve("900: 0, 500: 1, 300: 0.2"),
    read_curve("500: 0"), Cut(Gaussian(), 0.01),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_ceiling_is_the_most_that_is_still_to_come(schedule):
    times = [t / 2 for t in range(2000)]
    for t in (0, 137, 500, 640.5, 999.5):
        most = max(schedule.weight(layer, later) for later in times if later <= t for layer in (0, 1))
        assert schedule.ceiling(t) >= most - 1e-12
        assert (
            not isinstance(schedule, Gaussian | Curve)
            or schedule.ceiling(t) == pytest.approx(most, abs=1e-3)
        )


def test_cut_makes_small_weights_nothing():
    cut = Cut(Gaussian(), 0.1)
    assert [cut.weight(0, t) > 0 for t in (953, 951, 800, 650, 647)] == [False, True, True, True, False]
    assert cut.ceiling(640) == 0 < cut.ceiling(660)


REFUSED = {
    "no number": (lambda: read_layers("3-x"), "'3-x'"),
    "backwards": (lambda: read_layers("7-3"), "from the lower number to the higher"),
    "unknown layer": (lambda: check_layers({3, 12}, LAYERS, "stages"), "got layer 12"),
    "no attention": (lambda: check_layers({4, 6}, LAYERS, "stages"), "no layer with self-attention"),
    "no point": (lambda: read_curve("800 1"), "'800 1'"),
    "no points": (lambda: read_curve("  "), "got none"),
    "twice": (lambda: read_curve("800: 1, 800: 0"), "got two at t = 800"),
    "negative weight": (lambda: read_curve("800: -1"), "from 0 to 100, got -1"),
    "nan": (lambda: Gaussian(tau=float("nan")), "Expected tau of the schedule from 0 to 1000, got nan"),
    "zero width": (lambda: Gaussian(sigma=0), "Expected sigma of the schedule from 0.001 to 10000, got 0"),
    "negative constant": (lambda: Constant(-0.1), "Expected weight of the schedule from 0 to 100, got -0.1"),
    "cut above one": (lambda: Cut(OFF, 2), "Expected cut_below of the schedule from 0 to 1, got 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"\.$") as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_plot_shows_the_table():
    drop, times = Drop(frozenset(range(3, 8))), [950.0, 900.0, 100.0]
    assert (
        weight_table(drop, LAYERS, "stages", times).tolist()
        == [[0, w, w] for w in [float(3 <= stage <= 7) for stage in STAGES]]
    )
    picture = plot_weights(drop, LAYERS, "stages", times, steps=True)
    assert picture.dtype.name == "uint8" and picture.shape[2] == 3
    on, off = picture[34 + 320 * 6 // 16 + 5, 70 + 400], picture[34 + 320 * 6 // 16 + 5, 70 + 60]
    assert on[2] < 60 < 200 < off[2], "the middle layer is on in the second step and off in the first"
