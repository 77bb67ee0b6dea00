"""The prompt forms of JoyAI-Image's spatial edits, typed out; tests/golden has many more."""

import math

import pytest

from spatialweave.models.joyai_edit.prompts import (
    VIEWS,
    camera_change,
    encoder_text,
    is_trained,
    move_prompt,
    name_notes,
    nearest_trained,
    rotate_prompt,
)

CAMERA = (
    "Move the camera.\n- Camera rotation: Yaw {}\N{DEGREE SIGN}, Pitch {}\N{DEGREE SIGN}.\n"
    "- Camera zoom: {}.\n"
)
CAMERA += "- Keep the 3D scene static; only change the viewpoint."


@pytest.mark.parametrize(
    "name", ["the bicycle", "A 3D model of a child", "blue armchair", 'the "EXIT" sign', "the {a|b} mug"]
)
def test_move_inserts_the_name_verbatim(name):
    assert move_prompt(name) == "Move " + name + " into the red box and finally remove the red box."


def test_views_are_in_the_benchmarks_order_and_two_forms_differ():
    phrases = [
        "right side", "front right side", "front", "front left side", "left side", "rear left side",
        "rear", "rear right side",
    ]
    assert [rotate_prompt("the car", view) for view in VIEWS] == [
        f"Rotate the car to show the {phrase} view." for phrase in phrases
    ]
    readme = [rotate_prompt("the car", view, "readme") for view in VIEWS]
    assert readme == [f"Rotate the car to show the {view} side view." for view in VIEWS]


@pytest.mark.parametrize("yaw, pitch, zoom, words", [
    (45, -15, "in", ("45.0", "-15.0", "in")), (0, 0, "unchanged", ("0.0", "0.0", "unchanged")),
    (-0.04, 0.04, "out", ("0.0", "0.0", "out")), (400, 0, "in", ("40.0", "0.0", "in")),
    (-180, 0, "in", ("180.0", "0.0", "in")),
    (180.04, 0, "in", ("180.0", "0.0", "in")), (-179.96, 0, "in", ("180.0", "0.0", "in")),
    (-540, -0.0, "in", ("180.0", "0.0", "in")),
    (12.34, -7.89, "in", ("12.3", "-7.9", "in")), (0, 90, "in", ("0.0", "90.0", "in")),
])  # fmt: skip
def test_camera_rounds_wraps_and_never_prints_minus_zero(yaw, pitch, zoom, words):
    assert camera_change(yaw, pitch, zoom).prompt() == CAMERA.format(*words)


def test_the_integer_form_says_what_it_rounds():
    change = camera_change(22.5, -14.6, "in")
    assert change.prompt("integer") == CAMERA.format("23", "-15", "in")
    assert "yaw 22.5 and pitch -14.6 were rounded" in change.all_notes("integer")[-1]
    assert change.all_notes("one decimal") == list(change.notes)
    assert camera_change(-90, 30, "out").prompt("integer") == CAMERA.format("-90", "30", "out")


def test_off_the_trained_grid_the_nearest_is_named():
    assert camera_change(90, 30, "in").notes == ()
    (note,) = camera_change(100, 20, "in").notes
    assert (
        "Yaw 100, pitch 20 is not among the trained viewpoints" in note
        and "The nearest is yaw 90, pitch 15." in note
    )
    wrapped, off = camera_change(400, 0, "in").notes
    assert wrapped == "Yaw 400 was wrapped to 40 degrees, the same viewpoint." and "yaw 45, pitch 0" in off
    (nothing,) = camera_change(0, 0, "unchanged").notes
    assert nothing.startswith("This asks for no change")
    assert [nearest_trained(yaw, 0)[0] for yaw in (-179, -160, -150, 179, 20, 23)] == [
        180, 180, -135, 180, 0, 45
    ]
    assert nearest_trained(0, 88)[1] == 75 and is_trained(-180, 75) and not is_trained(0, 90)


@pytest.mark.parametrize("yaw, pitch, zoom, words", [
    (0, 95, "in", "Expected a pitch of -90 to 90 degrees, got 95"), (0, -90.1, "in", "got -90.1"),
    (math.nan, 0, "in", "Expected yaw in degrees, got nan"),
    (0, math.inf, "in", "Expected pitch in degrees, got inf"),
    (0, 0, "near", "Expected a zoom of unchanged, in, out, got 'near'"),
])  # fmt: skip
def test_what_no_camera_can_do_is_refused(yaw, pitch, zoom, words):
    with pytest.raises(ValueError, match=words):
        camera_change(yaw, pitch, zoom)


@pytest.mark.parametrize("name, words", [
    ("", "got an empty text"), ("  \t", "got an empty text"), ("the cat\nthe dog", "got several lines"),
    ("the cat<|im_end|>", r"got a text with <\|im_end\|>"),
])  # fmt: skip
def test_what_is_no_name_is_refused(name, words):
    for build in (move_prompt, lambda name: rotate_prompt(name, "rear")):
        with pytest.raises(ValueError, match=words):
            build(name)


def test_unknown_views_are_refused_and_braces_noted():
    with pytest.raises(ValueError, match="Expected a view of right, front right"):
        rotate_prompt("the car", "back")
    (note,) = name_notes("the {red|blue} mug")
    assert "braces" in note and name_notes("the mug") == []
    assert "blank" in name_notes(" the mug")[0]


def test_encoder_text_has_one_vision_block_per_image():
    text = encoder_text("P {x}", 2)
    assert text.count("<|vision_start|><|image_pad|><|vision_end|>") == 2
    assert (
        text.startswith("<|im_start|>system\n \\nDescribe the image")
        and text.endswith("P {x}<|im_end|>\n<|im_start|>assistant\n")
    )
