"""ControlNet, IPAdapter's way in and other packs' attention: they work on the image, and on nothing else."""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_intrinsic_others.py"
KINDS = ["sd21", "sdxl", "pixart"]


def test_controlnet_and_ipadapter_work_on_the_image(inside):
    result = inside(FILE, "image_branch")
    assert result["gap"] == 0 and result["seen"] and result["moved"] > 1e-3
    coupled = inside(FILE, "image_branch", schedule="half")
    assert coupled["seen"] and coupled["moved"] > 1e-3, "they see the rows they see without maps"


def test_what_they_say_of_the_image_reaches_its_rows_and_no_others(inside):
    result = inside(FILE, "by_value")
    assert result["calls"] >= 2 and result["apart"] > 1e-2, (
        "core's attention and the replacement must differ to be told apart"
    )
    assert result["control"] == result["maps"] == result["replaced"] == 0
    assert result["core"] < 1e-6


def test_a_controlnet_of_cores_own_class_works_on_the_image(inside):
    result = inside(FILE, "real_controlnet")
    assert result["gap"] == 0 and result["maps"] == 0
    assert result["moved"] > 1e-3 and result["half"] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_another_packs_attention_is_used(inside, kind):
    result = inside(FILE, "overridden", kind=kind)
    assert max(result["gaps"]) < 1e-5
    assert 2 <= result["with weights"] < result["calls"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_packs_attention_does_is_seen(inside, kind):
    """It has an effect of its own, which takes nothing from the weights, so it is not refused."""
    result = inside(FILE, "overridden", kind=kind, override="doubling")
    assert min(result["gaps"]) > 1e-2 and 2 <= result["with weights"] < result["calls"]


@pytest.mark.parametrize("kind", ["sd21", "pixart"])
@pytest.mark.parametrize("override", ["deaf", "cutting", "set_by_core"])
def test_an_attention_that_drops_the_weights_is_refused_by_name(inside, kind, override):
    sentence = inside(FILE, "overridden", kind=kind, override=override)["refused"]
    assert (
        f"inside_intrinsic_others.{override}, which another node installed" in sentence
        and sentence.endswith(".")
    )
    assert (
        "Remove that node" in sentence
        and "constant with weight 1" in sentence
        and sentence.startswith("Expected ")
    )


@pytest.mark.parametrize("schedule", ["one", "off"])
def test_an_attention_that_drops_weights_serves_where_there_are_none(inside, schedule):
    result = inside(FILE, "overridden", override="deaf", schedule=schedule)
    assert result["calls"] > 0 and result["with weights"] == 0 and max(result["gaps"]) < 1e-5
    assert schedule == "one" or result["base"] == 0
