"""Verdicts of figures that are written down here, and of a batch's bad input."""

import json
import math

import pytest
import torch

from spatialweave.models.core.evaluation.edit_batch import check_edits, describe_edits, edits_to_json
from spatialweave.models.core.evaluation.edit_verdict import EditRequest, judge_edit
from spatialweave.models.core.geometry.view import View

STILL = {
    "camera_found": True, "camera_moved": False, "camera_yaw_degrees": 0.0, "camera_pitch_degrees": 0.0,
    "camera_magnification": 1.0, "changed": 0.1, "object_seen": True, "object_found": True,
    "object_changed": 0.9, "object_size": 0.2, "object_shift_of_width": [0.3, 0.0],
    "object_displacement_of_width": 0.3, "original_remained": False, "red_box_remained": False,
    "rest_changed": 0.02,
}  # fmt: skip
MOVED = {"camera_moved": True, "camera_yaw_degrees": 30.0, "camera_pitch_degrees": 0.0}
MOVE, TURN = EditRequest("move object"), EditRequest("rotate object")
ORBIT = EditRequest("move camera", yaw_degrees=30.0)
AT_HOME = {"object_shift_of_width": [0.0, 0.0], "object_displacement_of_width": 0.0}

CASES = [
    (MOVE, {}, ()),
    (MOVE, {"target_iou": 0.8, "target_distance_of_width": 0.01}, ()),
    (MOVE, {"target_iou": 0.1, "target_distance_of_width": 0.2}, ("wrong_place",)),
    (MOVE, {"target_iou": 0.1, "target_distance_of_width": 0.02}, ()),
    (MOVE, AT_HOME | {"object_changed": 0.01}, ("not_moved",)),
    (MOVE, AT_HOME | {"object_changed": 0.4}, ("turned_not_moved",)),
    (MOVE, {"object_found": False}, ("object_gone",)),
    (MOVE, {"object_seen": False, "object_found": False}, ("not_found",)),
    (MOVE, {"original_remained": True, "red_box_remained": True}, ("original_remained", "box_remained")),
    (MOVE, {"rest_changed": 0.6}, ("rest_changed",)),
    (MOVE, {"changed": 0.0, "object_changed": 0.0}, ("nothing_changed",)),
    (MOVE, MOVED, ("camera_moved",)),
    (MOVE, MOVED | {"camera_found": False}, ("camera_unknown",)),
    (TURN, AT_HOME, ()),
    (TURN, AT_HOME | {"object_turn_degrees": 0.5}, ("not_turned",)),
    (TURN, AT_HOME | {"object_turn_degrees": -20.0, "object_changed": 0.0, "changed": 0.001}, ()),
    (TURN, {}, ("moved_not_turned",)),
    (ORBIT, MOVED, ()),
    (ORBIT, MOVED | {"camera_yaw_degrees": 24.0}, ()),
    (ORBIT, MOVED | {"camera_yaw_degrees": 10.0}, ("wrong_amount",)),
    (ORBIT, MOVED | {"camera_yaw_degrees": -30.0}, ("wrong_direction",)),
    (ORBIT, MOVED | {"camera_pitch_degrees": 12.0}, ("wrong_amount",)),
    (ORBIT, MOVED | {"camera_magnification": 1.4}, ("wrong_zoom",)),
    (ORBIT, {}, ("subject_instead",)),
    (ORBIT, {"changed": 0.0}, ("nothing_changed",)),
    (ORBIT, MOVED | {"camera_found": False}, ("camera_unknown",)),
    (
        EditRequest("move camera", zoom="in"),
        MOVED | {"camera_yaw_degrees": 0.2, "camera_magnification": 1.3},
        (),
    ),
    (
        EditRequest("move camera", zoom="in"),
        MOVED | {"camera_yaw_degrees": 0.2, "camera_magnification": 0.8},
        ("wrong_zoom",),
    ),
    (EditRequest("move camera"), {"changed": 0.0}, ()),
    (EditRequest(), {"original_remained": True}, ()),
]


@pytest.mark.parametrize(("request_", "figures", "failures"), CASES)
def test_figures_get_their_verdict(request_, figures, failures):
    verdict = judge_edit(request_, STILL | figures)
    assert verdict.failures == failures and verdict.is_done == (not failures)
    assert verdict.sentence.endswith(".") and "_" not in verdict.sentence
    if request_.kind != "anything":
        assert verdict.sentence.startswith("Not done: " if failures else "Done: ")


@pytest.mark.parametrize("wrong", [{"kind": "paint"}, {"zoom": "near"}, {"yaw_degrees": math.nan}])
def test_a_request_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="Expected .* got "):
        EditRequest(**{"kind": "move camera"} | wrong)


def test_the_json_of_an_unchanged_image_says_so():
    image = torch.rand(1, 48, 64, 3)
    matrix = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    view = View.from_depth(torch.full((1, 48, 64), 3.0), units="relative", intrinsics=matrix)
    reports = check_edits(image, image.clone(), view, MOVE)
    (row,) = json.loads(edits_to_json(reports))
    assert (
        not row["done"]
        and row["failures"] == ["nothing_changed"]
        and row["changed"] == 0
        and not row["camera_moved"]
    )
    assert "The depth is relative" in describe_edits(reports)
