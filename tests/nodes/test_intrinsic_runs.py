"""Every sampler and way to sample of core's with intrinsic maps; stopping them early; cancelling."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_intrinsic_runs.py"


def test_shared_noise_watches_the_sampler_and_not_the_network(inside):
    found = inside(FILE, "modes_in_the_network")
    assert found["inside"] == ["NoneType"] and found["outside"] == ["SharedNoise"] and found["calls"] >= 3


def test_weight_zero_is_the_base_model_in_every_sampler(inside):
    found = inside(FILE, "every_sampler")
    assert "dpm_adaptive" in found.pop("dpm_adaptive"), "by its name"
    assert len(found) > 40 and not {sampler: gap for sampler, gap in found.items() if gap != 0}


def test_a_run_in_two_halves_is_one_run(inside):
    assert inside(FILE, "in_two_halves")["image"] < 1e-5


@pytest.mark.parametrize("kind", ["sd21", "pixart"])
def test_weight_zero_is_the_base_model_from_images_and_in_any_size(inside, kind):
    result = inside(FILE, "from_images", kind=kind)
    assert result["img2img"] == result["inpainting"] == result["odd"] == 0
    assert result["kept"] < 1e-5, "what the mask keeps"


def test_a_model_in_flow_time(inside):
    """w goes by DDPM time of equal signal to noise: flow time t has sigma t / (1 - t)."""
    result = inside(FILE, "flow")
    assert result["gap"] == 0 and result["moved"] > 1e-4
    assert [sigma for sigma, _ in result["seen"]] == pytest.approx(result["sigmas"][:-1], rel=1e-4)
    table = {0.936: 999, 0.893: 900, 0.836: 800, 0.769: 700, 0.618: 500, 0.454: 300}
    for sigma, t in result["seen"]:
        low, high = (
            max((x for x in table if x <= sigma), default=0),
            min((x for x in table if x >= sigma), default=1),
        )
        assert table.get(low, 0) - 2 <= t <= table.get(high, 999) + 2


@pytest.mark.parametrize("kind", ["sd21", "sdxl", "pixart"])
def test_bfloat16_keeps_what_is_exact(inside, kind):
    result = inside(FILE, "bfloat16", kind=kind)
    assert result["off"] == result["stopped"] == 0 and 0 < result["apart"] < 0.05


@pytest.mark.parametrize("kind, coupled, t, share", [("sd21", 4, 428, "25%"), ("pixart", 5, 397, "19%")])
def test_stopped_maps_leave_the_image_identical_and_the_saving_is_measured(inside, kind, coupled, t, share):
    """w is cut below t 537: SD2.1's steps are at 999, 856, 714, 571, 428 and so on.
    A step costs 4 rows of 1/4 s, later 2.
    """
    result, alone = inside(FILE, "early_stop", kind=kind), 8 - coupled
    assert result["image"] == 0 and result["finite"]
    assert result["maps"] > 1e-4, "held maps are not those sampled to the end"
    assert result["last run"] == [[4, True]] * coupled + [[2, False]] * alone, (
        "an image alone goes through the bare base model"
    )
    kept, stopped = result["said"]
    assert (
        kept
        == f"8 predictions in 8 steps, 8.00 s; image and maps coupled in {coupled}, the maps' pass in all."
    )
    assert stopped == (
        f"8 predictions in 8 steps, {coupled + alone / 2:.2f} s; "
        f"image and maps coupled in {coupled}, the maps' pass stopped from t {t} "
        f"on, in {alone}: 0.5 s per prediction instead of 1 s, {alone / 2:.2f} s or {share} saved."
    )


@pytest.mark.parametrize(
    "kind, schedule, graphs", [("sd21", "half", 0), ("sd21", "off", 0), ("pixart", "gaussian", 1)]
)
def test_torch_compile_changes_no_number_and_compiles_nothing_twice(inside, kind, schedule, graphs):
    """Calls with maps run as written, so no layer, weight or step makes a graph;
    where the maps are stopped, the base model's serve.
    """
    result = inside(FILE, "compiled", kind=kind, schedule=schedule)
    assert result["gap"] == 0
    assert (result["first"] > 0) == bool(graphs) and result["second"] == 0


@pytest.mark.parametrize("kind, schedule, calls", [("sd21", "gaussian", 5), ("pixart", "off", 4)])
def test_cancel_inside_any_call_restores_everything(inside, kind, schedule, calls):
    result = inside(FILE, "cancelled", kind=kind, schedule=schedule, steps=2 if kind == "pixart" else 3)
    assert result["calls"] == calls and set(result["found"]) == {0}
