"""The verdict of a checked edit in a sentence: done, or what failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

RequestKind = Literal["anything", "move object", "rotate object", "move camera"]
Zoom = Literal["in", "out", "unchanged"]

_MOVED = 0.01  # of the width: less is no displacement
_TURNED = 0.08  # of the object's pixels, of another color: less is no turn
_LEAST_TURN = 4.0  # degrees
_IN_PLACE = 0.2  # of the object's size: a turned object may move by its own outline, not by more
_HIT = 0.35  # IoU of the object's rectangle and that of its goal
_NEAR = 0.03  # of the width: distance to the goal that is good enough
_REST = 0.35  # of the rest of the image that may change: shadows and reflections move along
_ANGLE, _ANGLE_SHARE = 5.0, 0.3  # degrees, and part of the request, by which a camera may miss
_WRONG_WAY = 2.0  # degrees against the request that are no inaccuracy
_ZOOMED = 0.04  # change of size from which on the camera is nearer or farther
_CHANGED = 0.003  # of the image: fewer changed pixels are none

_PARTS = {
    "nothing_changed": "nothing moved: the image after is the image before",
    "not_found": "the object was not found: draw its mask",
    "object_gone": "the object is gone and did not come back elsewhere",
    "not_moved": "the object did not move",
    "turned_not_moved": "the object changed where it stands instead of moving",
    "moved_not_turned": "the object moved instead of turning",
    "not_turned": "the object did not turn",
    "original_remained": "the original is still there beside the new object",
    "wrong_place": "the object went to the wrong place",
    "box_remained": "the red box remained",
    "camera_moved": "the camera moved instead of the object",
    "subject_instead": "the subject changed instead of the camera",
    "camera_unknown": "too little of the scene was found again to measure the camera",
    "wrong_direction": "the camera moved in the wrong direction",
    "wrong_amount": "the camera moved by a wrong amount",
    "wrong_zoom": "the distance of the camera is wrong",
    "rest_changed": "other parts of the image changed",
}


@dataclass(frozen=True)
class EditRequest:
    """What was asked for. Where nothing is said, nothing is compared."""

    kind: RequestKind = "anything"
    target: Tensor | None = None  # (h, w) bool: where the object was to go
    yaw_degrees: float = 0.0
    pitch_degrees: float = 0.0
    zoom: Zoom = "unchanged"

    def __post_init__(self) -> None:
        if self.kind not in get_args(RequestKind) or self.zoom not in get_args(Zoom):
            raise ValueError(
                f"Expected an edit of {get_args(RequestKind)} and a zoom of {get_args(Zoom)}, got "
                f"{self.kind!r} and {self.zoom!r}. Choose one of these."
            )
        if not (math.isfinite(self.yaw_degrees) and math.isfinite(self.pitch_degrees)):
            raise ValueError(
                f"Expected a yaw and a pitch in degrees, got {self.yaw_degrees} and {self.pitch_degrees}. "
                "Give the angles of the prompt."
            )


@dataclass(frozen=True)
class EditVerdict:
    """`failures` are keys of _PARTS, the gravest first; none means done."""

    failures: tuple[str, ...]
    sentence: str

    @property
    def is_done(self) -> bool:
        return not self.failures


def judge_edit(request: EditRequest, figures: Mapping[str, Any]) -> EditVerdict:
    """The verdict of figures as edit_check.py measures them."""
    tests: dict[str, Callable] = {
        "move object": _failures_of_move,
        "rotate object": _failures_of_turn,
        "move camera": _failures_of_camera,
    }
    if request.kind == "anything":
        return EditVerdict((), _describe(figures))
    failures = tuple(tests[request.kind](request, figures))
    if not failures:
        return EditVerdict((), f"Done: {_describe(figures)[0].lower()}{_describe(figures)[1:]}")
    parts = "; ".join(_PARTS[failure] for failure in failures)
    return EditVerdict(failures, f"Not done: {parts}. {_describe(figures)}")


def _failures_of_move(request: EditRequest, figures: Mapping[str, Any]) -> list[str]:
    failures = _failures_of_object(figures)
    if failures:
        return failures
    if figures["object_displacement_of_width"] < _MOVED and not figures["original_remained"]:
        failures.append("turned_not_moved" if figures["object_changed"] > _TURNED else "not_moved")
    elif "target_iou" in figures and not (
        figures["target_iou"] >= _HIT or figures["target_distance_of_width"] <= _NEAR
    ):
        failures.append("wrong_place")
    return failures + _leftovers(figures)


def _failures_of_turn(request: EditRequest, figures: Mapping[str, Any]) -> list[str]:
    failures = _failures_of_object(figures)
    if failures:
        return failures
    if figures["object_displacement_of_width"] > max(_MOVED, _IN_PLACE * figures["object_size"]):
        failures.append("moved_not_turned")
    elif not _has_turned(figures):
        failures.append("not_turned")
    return failures + _leftovers(figures)


def _has_turned(figures: Mapping[str, Any]) -> bool:
    """By the measured angle, or where there is none by the object's colors."""
    turn = figures.get("object_turn_degrees")
    return figures.get("object_changed", 0) > _TURNED if turn is None else abs(turn) > _LEAST_TURN


def _failures_of_object(figures: Mapping[str, Any]) -> list[str]:
    """What keeps an object's motion from being judged at all."""
    boxed = ["box_remained"] if figures["red_box_remained"] else []
    if figures["camera_moved"]:
        return ["camera_moved" if figures["camera_found"] else "camera_unknown", *boxed]
    if figures["changed"] < _CHANGED and not _has_turned(figures):
        return ["nothing_changed", *boxed]
    if not figures["object_seen"]:
        return ["not_found", *boxed]
    return [] if figures["object_found"] else ["object_gone", *boxed]


def _leftovers(figures: Mapping[str, Any]) -> list[str]:
    found = {
        "original_remained": figures["original_remained"],
        "box_remained": figures["red_box_remained"],
        "rest_changed": figures["rest_changed"] > _REST,
    }
    return [name for name, is_so in found.items() if is_so]


def _failures_of_camera(request: EditRequest, figures: Mapping[str, Any]) -> list[str]:
    boxed = ["box_remained"] if figures["red_box_remained"] else []
    asked = request.yaw_degrees, request.pitch_degrees
    if not figures["camera_moved"]:
        if not any(asked) and request.zoom == "unchanged":
            return boxed
        return ["nothing_changed" if figures["changed"] < _CHANGED else "subject_instead", *boxed]
    if not figures["camera_found"]:
        return ["camera_unknown", *boxed]
    failures = []
    got = figures["camera_yaw_degrees"], figures["camera_pitch_degrees"]
    misses = [abs(g - a) > max(_ANGLE, _ANGLE_SHARE * abs(a)) for g, a in zip(got, asked, strict=True)]
    opposite = [m and abs(g) > _WRONG_WAY and g * a < 0 for m, g, a in zip(misses, got, asked, strict=True)]
    if any(misses):
        failures.append("wrong_direction" if any(opposite) else "wrong_amount")
    size = figures["camera_magnification"]
    zoom = "in" if size > 1 + _ZOOMED else "out" if size < 1 - _ZOOMED else "unchanged"
    # an orbit about another point than the one assumed changes the distance a little
    if zoom != request.zoom and not (request.zoom == "unchanged" and abs(size - 1) < 3 * _ZOOMED):
        failures.append("wrong_zoom")
    return failures + boxed


def _describe(figures: Mapping[str, Any]) -> str:
    """What happened, in one sentence or two."""
    parts = []
    if figures["camera_moved"]:
        parts.append(
            f"the camera turned by yaw {figures['camera_yaw_degrees']:.1f} and pitch "
            f"{figures['camera_pitch_degrees']:.1f} degrees, magnification "
            f"{figures['camera_magnification']:.2f}"
        )
    if "object_displacement_of_width" in figures:
        right, down = figures["object_shift_of_width"]
        words = (
            f"the object's center moved by {100 * right:+.1f} % of the width to the right and "
            f"{100 * down:+.1f} % down"
        )
        if "object_shift_metres_length" in figures:
            words += f", {figures['object_shift_metres_length']:.2f} m in space"
        if figures.get("object_turn_degrees") is not None:
            words += f", and turned by {figures['object_turn_degrees']:.0f} degrees"
        parts.append(words)
    parts.append(f"{100 * figures['rest_changed']:.1f} % of the rest changed")
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]
