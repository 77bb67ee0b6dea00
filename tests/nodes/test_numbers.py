"""Numbers arrive as they are typed: the frontend rounds to the decimals of `step`, whatever `round` says."""

import math

import pytest

pytestmark = pytest.mark.comfyui

# what somebody may well type, by the input's name; an input that is new is thought about here
TYPED = {
    "png_scale": [0.001, 1 / 256, 1 / 5000, 0.0001, 0.00025, 10 / 65535, 1 / 65535, 80 / 65535, 0.01, 1.0],
    "background_at": [1e10, 65504.0, 1000.0, 99.9999, 1e12],
    "near": [0.25, 0.05, 0.1234, 0.001, 1234.5678],
    "far": [2.55, 0.1234, 80.0, 65.535, 99999.9999],
    "fov_degrees": [39.5978, 53.1301, 62.25, 90.0],  # 50 mm and 36 mm; 3 to 4
    "near_percentile": [0.5, 0.25, 2.28],
    "far_percentile": [99.5, 99.95, 99.99, 97.72],
    "parallax": [1.234, 0.05, 2.5],
    "screen": [0.007, 0.333, 0.5],
    "edge_threshold": [0.007, 0.0005, 0.04],
    "alpha": [0.125, 0.007, 1.0],
    "tau": [799.5, 333.33, 0.5],
    "sigma": [99.5, 33.33, 1.0],
    "weight": [0.125, 0.007, 1.0],
    "cut_below": [0.1234, 0.0005, 0.001],
    "log2_alpha": [0.07, -1.58, 3.32, 5.0],
    "depth_cfg": [12.34, 1.25, 7.5],
    # the trained prompts print one decimal
    "yaw": [45.0, -135.0, 12.3],
    "pitch": [-15.0, 30.5],
    "yaw_degrees": [45.0, -22.5],
    "pitch_degrees": [-15.0, 7.5],
    "threshold": [0.1, 0.035, 0.005],
    "temperature": [0.7, 0.25, 1.15],
    "top_p": [0.8, 0.95, 0.05],
    "distance": [1.2345, 0.0635, 25.4],
    "min_confidence": [0.5, 0.125, 1.05],
    "drop_percent": [10.0, 2.5],
    "tolerance": [0.03, 0.0125, 0.001],
    "voxel_size": [0.01, 0.0025, 0.5],
    "strength": [1.0, 0.55, 1.25],
    "lora_strength": [1.0, 0.55, 1.25],
    "start_percent": [0.0, 0.125, 0.333],
    "end_percent": [1.0, 0.875, 0.667],
    "height": [0.9, 1.75, 0.05],
    "guidance_from": [1.0, 0.875, 0.9],
    "guidance_to": [0.0, 0.125, 0.333],
}
COARSEST = 1e-6  # of the number: 5120 steps of 1/256 are 20 metres


@pytest.fixture(scope="module")
def numbers(inside):
    return inside("inside_numbers.py", "numbers")


def decimals(step):
    return max(0, -math.floor(math.log10(step)))


def as_frontend_takes_it(number, put):
    """A number typed into a node of the frontend 1.49: rounded to `round`, else to the decimals of `step`;
    cut to those anyway.
    """
    places = decimals(put.get("step", 0.5))
    unit = put.get("round") or (10.0**-places if places else None)
    if unit:
        number = float(f"{math.floor(number / unit + 0.5) * unit:.{places}f}")
    number = min(max(number, put.get("min", 0)), put.get("max", 2048))
    return float(f"{number:.{places}f}")  # Nodes 2.0 read the field again when it is left


def test_the_frontends_rounding_is_the_one_that_was_seen():
    """png_scale as it was declared: 1/256 came out as .004, 1/5000 as 0."""
    put = {"min": 0.0, "max": 1000.0, "step": 0.001, "round": 0.000001}
    assert [as_frontend_takes_it(number, put) for number in (1 / 256, 1 / 5000)] == [0.004, 0.0]


def test_every_number_arrives_as_it_was_typed(numbers):
    assert len(numbers) >= 25 and {place.rsplit(".", 1)[1] for place in numbers} == set(TYPED)
    for place, put in numbers.items():
        name = place.rsplit(".", 1)[1]
        for number in (*TYPED[name], put["default"], put["min"], put["max"]):
            if put["min"] <= number <= put["max"]:
                seen = as_frontend_takes_it(number, put)
                assert math.isclose(seen, number, rel_tol=COARSEST), (
                    f"{place}: {number} was typed and is {seen}"
                )


def test_no_step_is_coarser_than_what_is_kept(numbers):
    for place, put in numbers.items():
        assert put["step"] <= put.get("round", put["step"]), (
            f"{place}: numbers are cut to the decimals of step"
        )
