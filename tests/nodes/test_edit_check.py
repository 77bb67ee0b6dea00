"""Check Edit in a real ComfyUI: right and wrong edits of images that numpy drew, and bad input."""

import pytest

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def edits(inside):
    return lambda function, **kwargs: inside("inside_edit_check.py", function, **kwargs)


def test_a_moved_object_is_measured_in_pixels_and_metres(edits):
    result = edits("moved")
    (figures,) = result["figures"]
    assert result["done"] and result["text"].startswith("Done: ") and not figures["camera_moved"]
    assert figures["object_shift_of_width"] == pytest.approx([40 / 128, 0], abs=0.004)
    metres = 40 * 4.0 * 2 * 0.46631 / 128  # at 4 metres, with tan(25 degrees)
    assert figures["object_shift_metres"] == pytest.approx([metres, 0, 0], abs=0.05)
    assert (
        figures["target_iou"] > 0.85 and 0.9 < figures["move_score"] <= 1 and figures["rest_changed"] < 0.01
    )
    assert result["found"][0] == [1, 96, 128] and result["found"][1] == pytest.approx(3.1416 * 144, rel=0.06)
    assert (
        result["changed"][0] == [1, 96, 128]
        and result["changed"][1] == pytest.approx(2 * 3.1416 * 144 / 96 / 128, rel=0.2)
    )
    assert (
        result["sheet"][0] == 1
        and result["sheet"][3] == 3
        and 0 <= result["range"][0]
        and result["range"][1] <= 1
    )


def test_the_object_is_found_without_masks(edits):
    (figures,) = edits("moved", masks=False)["figures"]
    assert (
        figures["object_shift_of_width"] == pytest.approx([40 / 128, 0], abs=0.02)
        and "target_iou" not in figures
    )


def test_a_batch_is_checked_image_by_image(edits):
    result = edits("moved", batch=3)
    assert [figures["done"] for figures in result["figures"]] == [True, True, False] and not result["done"]
    assert (
        result["sheet"][0] == 3
        and result["shown"] == 3
        and result["text"].count("image 2: Not done: nothing moved") == 1
    )


@pytest.mark.parametrize(
    ("case", "failure"),
    [
        ("nothing moved", "nothing_changed"),
        ("original remained", "original_remained"),
        ("object gone", "object_gone"),
        ("wrong place", "wrong_place"),
        ("box remained", "box_remained"),
    ],
)
def test_a_failed_move_says_what_failed(edits, case, failure):
    result = edits("failed", case=case)
    assert (
        result["figures"][0]["failures"] == [failure]
        and not result["done"]
        and result["text"].startswith("Not done: ")
    )


def test_a_moved_camera_is_measured_in_degrees(edits):
    result = edits("orbited", case="done")
    (figures,) = result["figures"]
    assert result["done"], result["text"]
    assert (
        figures["camera_yaw_degrees"] == pytest.approx(15, abs=1)
        and figures["camera_pitch_degrees"] == pytest.approx(0, abs=1)
    )
    assert figures["viewpoint_error"] < 0.1


@pytest.mark.parametrize(
    ("case", "failure"), [("wrong direction", "wrong_direction"), ("nothing moved", "nothing_changed")]
)
def test_a_wrong_camera_says_what_is_wrong(edits, case, failure):
    assert edits("orbited", case=case)["figures"][0]["failures"][0] == failure


REFUSALS = {
    "sizes": ["128 x 96 before and 128 x 90 after", "Bring the image after back"],
    "nan": ["image after", "NaN"],
    "no camera": ["without intrinsics", "fov_degrees"],
    "empty mask": ["object_mask", "empty mask (image 0)"],
    "mask size": ["target_mask", "(1, 64, 64)"],
    "batch": ["3 of image after", "2 of image before"],
    "no depth": ["Expected a valid pixel"],
    "other shape": ["128 x 96, got 96 x 96"],
    "covered": ["background pixels", "mask"],
    "tiny": ["16 x 16", "4 x 4"],
    "yaw": ["nan"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_gets_a_sentence(edits, case):
    said = edits("refused", case=case)
    assert said and all(part in said for part in REFUSALS[case]) and "\n" not in said, said
