"""Edits do what they say and nothing else: instructions against the geometry of both frames."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

from spatialweave.models.world.captions import true_relations
from spatialweave.models.world.edits import edit_from_json, elevation, sample_edits
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import is_placeable

OBJECT = r"the (?:\w+ )?(?:ball|box|cylinder|cone)"
DISTANCE = r"(half a metre|one metre|one and a half metres)"
METRES = {"half a metre": 0.5, "one metre": 1.0, "one and a half metres": 1.5}
WAYS = {
    "to the left": (-1, 0),
    "to the right": (1, 0),
    "towards the camera": (0, -1),
    "away from the camera": (0, 1),
}
GRAMMAR = {
    "along": rf"(?:move|shift|slide) ({OBJECT}) {DISTANCE} ({'|'.join(WAYS)})",
    "beside": rf"(?:move|put|place) ({OBJECT}) "
    rf"(to the left of|to the right of|in front of|behind) ({OBJECT})",
    "rotate": rf"(?:rotate|turn) ({OBJECT}) (\d+) degrees (clockwise|counterclockwise)",
    "orbit": r"(?:orbit|move) the camera (\d+) degrees to the (left|right)",
    "raise": r"(raise|lower) the camera by (\d+) degrees",
    "dolly": rf"move the camera {DISTANCE} (closer|farther away)",
    "zoom": r"zoom (in|out) ([\d.]+) times",
}


@pytest.fixture(scope="module")
def edits():
    return sample_edits(21, 240)


def read(edits, rule):
    """(edit, matched words) of all edits of one rule."""
    found = [(edit, match) for edit in edits if (match := re.fullmatch(GRAMMAR[rule], edit.instruction))]
    assert len(found) >= 8, rule
    return found


def names(scene, words):
    """Indices of the objects that the words could mean."""
    kind = words.split()[1:]
    return [i for i, item in enumerate(scene.objects) if item.name.split()[-len(kind) :] == kind]


def in_camera(scene, index):
    """An object's centre before the scene's camera, x right, y down, z forward, with the pose as rendered."""
    pose = render([scene], 8, 8, samples=1).world_to_cam[0]
    return (pose[:3, :3] @ torch.tensor(scene.objects[index].center) + pose[:3, 3]).tolist()


def test_every_instruction_follows_exactly_one_rule(edits):
    for edit in edits:
        rules = [rule for rule, pattern in GRAMMAR.items() if re.fullmatch(pattern, edit.instruction)]
        assert len(rules) == 1, edit.instruction
        kind = {"along": "move", "beside": "move", "rotate": "rotate"}.get(rules[0], "camera")
        assert edit.kind == kind


def test_instructions_name_the_edited_object_and_no_other(edits):
    for edit in edits:
        if edit.object is not None:
            said = re.search(OBJECT, edit.instruction)[0]
            assert names(edit.source, said) == [edit.object], edit.instruction


def test_nothing_else_changes(edits):
    for edit in edits:
        source, target = edit.source, edit.target
        if edit.kind == "camera":
            assert replace(target, camera=source.camera) == source and target != source
        else:
            assert replace(target, objects=source.objects) == source
            pairs = zip(source.objects, target.objects, strict=True)
            assert [i for i, (a, b) in enumerate(pairs) if a != b] == [edit.object]
            kept = {"position": (0.0, 0.0)} if edit.kind == "move" else {"yaw": 0.0}
            assert replace(source.objects[edit.object], **kept) == replace(
                target.objects[edit.object], **kept
            )


def test_moves_go_where_and_as_far_as_said(edits):
    for edit, match in read(edits, "along"):
        before, after = (edit.source.objects[edit.object].position, edit.target.objects[edit.object].position)
        assert math.dist(before, after) == pytest.approx(METRES[match[2]], abs=1e-6)
        x, _, z = (
            b - a
            for a, b in zip(
                in_camera(edit.source, edit.object), in_camera(edit.target, edit.object), strict=True
            )
        )
        sideways, ahead = WAYS[match[3]]
        assert x * sideways + z * ahead > 0.8 * METRES[match[2]]
        assert abs(x * ahead + z * sideways) < 1e-4, "straight along, not across"


def test_relations_hold_after_the_edit_and_not_before(edits):
    for edit, match in read(edits, "beside"):
        (other,) = names(edit.source, match[3])
        kind = match[2].replace("to the ", "")
        assert other == edit.parameters["reference"] and kind == edit.parameters["relation"]
        assert kind not in true_relations(edit.source, edit.object, other)
        assert kind in true_relations(edit.target, edit.object, other)
        one, two = in_camera(edit.target, edit.object), in_camera(edit.target, other)
        value = {"left of": two[0] / two[2] - one[0] / one[2], "right of": one[0] / one[2] - two[0] / two[2]}
        value |= {"in front of": two[2] - one[2], "behind": one[2] - two[2]}
        assert value[kind] > 0


def test_rotations_turn_boxes_about_the_vertical(edits):
    for edit, match in read(edits, "rotate"):
        assert edit.source.objects[edit.object].shape == "box"
        turn = edit.target.objects[edit.object].yaw - edit.source.objects[edit.object].yaw
        # a right-handed turn about y, which points at the eye of whoever looks from above, is
        # counterclockwise
        assert (
            turn
            == pytest.approx(int(match[2]) * (1 if match[3] == "counterclockwise" else -1))
            == edit.parameters["degrees"]
        )


def test_orbits_keep_target_and_distance_and_go_to_the_said_side(edits):
    for rule, axis in (("orbit", 0), ("raise", 1)):
        for edit, match in read(edits, rule):
            before, after = edit.source.camera, edit.target.camera
            assert after.target == before.target and after.fov == before.fov
            assert math.dist(after.position, after.target) == pytest.approx(
                math.dist(before.position, before.target)
            )
            pose = render([edit.source], 8, 8, samples=1).world_to_cam[0]
            moved = (pose[:3, :3] @ torch.tensor(after.position) + pose[:3, 3]).tolist()
            sign = {"right": 1, "left": -1, "raise": -1, "lower": 1}[
                match[2] if rule == "orbit" else match[1]
            ]  # y points down
            assert moved[axis] * sign > 0
            degrees = int(match[1] if rule == "orbit" else match[2])
            flat = [(c.position[0] - c.target[0], c.position[2] - c.target[2]) for c in (before, after)]
            turned = math.degrees(math.atan2(*flat[1]) - math.atan2(*flat[0]))
            assert abs((turned + 180) % 360 - 180) == pytest.approx(
                degrees if rule == "orbit" else 0, abs=1e-4
            )
            assert abs(elevation(after) - elevation(before)) == pytest.approx(
                0 if rule == "orbit" else degrees, abs=1e-4
            )


def test_dollies_travel_along_the_view(edits):
    for edit, match in read(edits, "dolly"):
        pose = render([edit.source], 8, 8, samples=1).world_to_cam[0]
        x, y, z = (pose[:3, :3] @ torch.tensor(edit.target.camera.position) + pose[:3, 3]).tolist()
        assert z == pytest.approx(METRES[match[1]] * (1 if match[2] == "closer" else -1), abs=1e-4)
        assert abs(x) < 1e-4 and abs(y) < 1e-4


def test_zooms_scale_the_focal_length(edits):
    for edit, match in read(edits, "zoom"):
        one, two = (
            render([scene], 8, 8, samples=1).intrinsics[0, 0, 0] for scene in (edit.source, edit.target)
        )
        assert float(two / one) == pytest.approx(float(match[2]) ** (1 if match[1] == "in" else -1), rel=1e-4)


def test_the_edited_object_is_well_seen_in_both_frames():
    edits = [edit for edit in sample_edits(22, 48) if edit.object is not None]
    for scenes in ([edit.source for edit in edits], [edit.target for edit in edits]):
        together = render(scenes, 48, 48, samples=1).segmentation
        lonely = [
            replace(scene, objects=(scene.objects[edit.object],))
            for scene, edit in zip(scenes, edits, strict=True)
        ]
        alone = render(lonely, 48, 48, samples=1).segmentation
        for edit, all_labels, own in zip(edits, together, alone, strict=True):
            seen, whole = (all_labels == edit.object + 1).sum(), (own == 1).sum()
            assert whole >= 6 and seen >= 0.7 * whole, edit.instruction


def test_targets_stand_as_scenes_do(edits):
    for edit in edits:
        scene = edit.target
        for i, item in enumerate(scene.objects):
            assert is_placeable(item, scene.objects[:i] + scene.objects[i + 1 :], scene.camera)
        if scene.surroundings.room is not None:
            half, behind, front, height = scene.surroundings.room
            x, y, z = scene.camera.position
            assert abs(x) < half and z < front and 0 < y < height
            if edit.kind == "move":
                item = scene.objects[edit.object]
                assert (
                    abs(item.position[0]) + item.footprint <= half
                    and item.position[1] - item.footprint >= -behind
                )


def test_same_seed_same_edits_whatever_the_batch(edits):
    assert sample_edits(21, 10) == edits[:10]
    assert sample_edits(21, 4, start=6) == edits[6:10]


def test_splits_share_no_edit():
    train, test = (
        {json.dumps(edit.source.to_json()) for edit in sample_edits(0, 60, split=split)}
        for split in ("train", "test")
    )
    assert not train & test


def test_json_round_trip(edits):
    for edit in edits[:40]:
        assert edit_from_json(json.loads(json.dumps(edit.to_json()))) == edit


def test_kinds_can_be_chosen():
    assert {edit.kind for edit in sample_edits(0, 12, kinds=("rotate",))} == {"rotate"}
    with pytest.raises(ValueError, match="among move, rotate, camera, got 'melt'"):
        sample_edits(0, 1, kinds=("melt",))
    with pytest.raises(ValueError, match="got none"):
        sample_edits(0, 1, kinds=())
