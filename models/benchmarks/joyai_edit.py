"""Evaluation of the edit check on exact edits of the procedural world: figures, and verdicts of right and
wrong results."""

from __future__ import annotations

import io
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.evaluation.edit_change import Box, box_of_mask
from ..core.evaluation.edit_check import EditReport, check_edit
from ..core.evaluation.edit_verdict import EditRequest
from ..core.geometry.view import View
from ..core.pictures import open_picture
from ..joyai_edit.alignment import measure_framing
from ..joyai_edit.boxes import draw_red_box
from ..world.edits import Edit, EditKind, is_sound, is_well_seen, orbit_camera, sample_edits
from ..world.render import Frames, render
from ..world.scene import Scene, with_objects
from .intervals import proportion_interval, summarize_seeds

EDITS_SEED = 2026  # of the test split; thresholds were chosen on scenes of the train split
_SIZE = 256  # pixels a side
_FRAMED = 50  # sizes of images whose framing is measured
_KINDS: tuple[EditKind, ...] = ("move", "rotate", "camera")
_DISPLACEMENT_GOAL, _ANGLE_GOAL = 0.02, 2.0  # of the width; degrees
_GAIN, _NOISE, _JPEG = 0.03, 0.01, 90  # what decoding and files do to an edited image's colors

# what is done to the result, and the verdicts that say it
_CASES: dict[EditKind, dict[str, tuple[str, ...]]] = {
    "move": {
        "done": (),
        "nothing moved": ("nothing_changed", "not_moved"),
        "box remained": ("box_remained",),
        "original remained": ("original_remained",),
        "wrong place": ("wrong_place",),
        "object gone": ("object_gone",),
    },
    "rotate": {
        "done": (),
        "nothing moved": ("nothing_changed", "not_turned"),
        "moved instead": ("moved_not_turned",),
        "camera instead": ("camera_moved",),
    },
    "camera": {
        "done": (),
        "nothing moved": ("nothing_changed",),
        "subject turned instead": ("subject_instead",),
        "wrong direction": ("wrong_direction",),
    },
}


@dataclass(frozen=True)
class Judged:
    """One checked result: of which edit and case, and whether the verdict names it."""

    edit: Edit
    case: str
    report: EditReport
    is_right: bool


def evaluate_edit_check(
    count: int = 200, *, seed: int = EDITS_SEED, split: str = "test"
) -> dict[str, Any]:
    """Figures by name, of `count` edits, a third of each kind: every right result is measured, and of every
    edit one case, in turn, is judged.

    The check gets the images (the one after with a decoder's gain, noise and JPEG), the exact depth before
    with its intrinsics but no pose, and the object's mask before; of rotations the depth after, too.
    """
    if count < len(_KINDS):
        raise ValueError(f"Expected at least {len(_KINDS)} edits, one of each kind, got {count}. Set --n.")
    figures: dict[str, Any] = {}
    verdicts: list[Judged] = []
    for index, kind in enumerate(_KINDS):
        share = (count + len(_KINDS) - 1 - index) // len(_KINDS)
        done, judged = measure_kind(kind, share, seed=seed, split=split)
        figures |= _FIGURES[kind](done)
        verdicts += judged
    rights = [each.is_right for each in verdicts]
    figures |= _proportion("check.accuracy", rights)
    for kind, cases in _CASES.items():
        for case in cases:
            some = [each.is_right for each in verdicts if (each.edit.kind, each.case) == (kind, case)]
            figures[f"check.{kind}: {case}"] = f"{sum(some)} of {len(some)}"
    figures |= framing_figures() | {"edits": count, "verdicts": len(verdicts), "seed": seed}
    return {name: _rounded(value) for name, value in figures.items()}


def measure_kind(
    kind: EditKind, count: int, *, seed: int, split: str
) -> tuple[list[tuple[Edit, EditReport, Frames, Frames]], list[Judged]]:
    """Reports of the right results of `count` edits of a kind with their frames, and the judged cases."""
    done, judged = [], []
    cases = list(_CASES[kind])
    edits = sample_edits(seed, count, split=split, kinds=(kind,))
    for index, edit in enumerate(tqdm(edits, desc=kind, unit="edit")):
        rng = random.Random(f"edit check/{kind}/{seed}/{index}")
        before, target = (render([scene], _SIZE, _SIZE) for scene in (edit.source, edit.target))
        report = check_result(edit, before, target, degrade_image(target.image[0], rng), target)
        done.append((edit, report, before, target))
        case = cases[index % len(cases)]
        result = None if case == "done" else make_case(edit, case, before, target, rng)
        if result is None:
            judged.append(Judged(edit, "done", report, report.verdict.is_done))
            continue
        report = check_result(edit, before, target, *result)
        named = report.verdict.failures[:1]
        judged.append(Judged(edit, case, report, bool(named) and named[0] in _CASES[kind][case]))
    return done, judged


def check_result(edit: Edit, before: Frames, target: Frames, after: Tensor, frames: Frames) -> EditReport:
    """The check of one image after (h, w, 3) against what the edit asked for; the depth of
    its `frames` is given to rotations alone."""
    masks = [
        None if edit.object is None else each.segmentation[0] == edit.object + 1 for each in (before, target)
    ]
    place = None
    if edit.kind == "move":
        place = torch.zeros_like(masks[1])
        box = box_of_mask(masks[1])
        place[box.top : box.bottom, box.left : box.right] = True
    depth_after = view_of(frames) if edit.kind == "rotate" else None
    request = request_of(edit, place)
    return check_edit(
        before.image[0], after, view_of(before), request, object_before=masks[0], view_after=depth_after
    )


def view_of(frames: Frames) -> View:
    """The exact depth with its camera, as a depth network gives it: without a pose in the world."""
    return View.from_depth(frames.depth, units="metric", intrinsics=frames.intrinsics)


def request_of(edit: Edit, place: Tensor | None) -> EditRequest:
    """What the edit's instruction asks for, in the terms of the check."""
    if edit.kind == "move":
        return EditRequest("move object", place)
    if edit.kind == "rotate":
        return EditRequest("rotate object")
    numbers = edit.parameters
    nearer = numbers.get("metres", 0) > 0 or numbers.get("factor", 1) > 1
    farther = numbers.get("metres", 0) < 0 or numbers.get("factor", 1) < 1
    zoom = "in" if nearer else "out" if farther else "unchanged"
    return EditRequest(
        "move camera",
        yaw_degrees=numbers.get("yaw_degrees", 0.0),
        pitch_degrees=numbers.get("pitch_degrees", 0.0),
        zoom=zoom,
    )


def make_case(
    edit: Edit, case: str, before: Frames, target: Frames, rng: random.Random
) -> tuple[Tensor, Frames] | None:
    """The image (h, w, 3) of a wrong result and its frames, or None where this edit has no such."""
    if case == "nothing moved":
        return degrade_image(before.image[0], rng), before
    if case == "box remained":
        box = box_of_mask(target.segmentation[0] == edit.object + 1)
        return degrade_image(_with_box(target.image[0], box), rng), target
    scene = _wrong_scene(edit, case, rng)
    if scene is None:
        return None
    frames = render([scene], _SIZE, _SIZE)
    return degrade_image(frames.image[0], rng), frames


def _with_box(image: Tensor, box: Box) -> Tensor:
    """The image (h, w, 3) with the red box of a prompt around a region."""
    return draw_red_box(image, (box.left, box.top, box.right, box.bottom))


def _wrong_scene(edit: Edit, case: str, rng: random.Random) -> Scene | None:
    source, index = edit.source, edit.object
    if case == "original remained":
        both = (*source.objects, edit.target.objects[index])
        first, second = source.objects[index], edit.target.objects[index]
        apart = math.dist(first.position, second.position) > first.footprint + second.footprint
        scene = with_objects(source, both)
        seen = all(is_well_seen(scene, each) for each in (index, len(both) - 1))
        return scene if apart and seen else None
    if case == "object gone":
        rest = tuple(item for i, item in enumerate(source.objects) if i != index)
        return with_objects(source, rest) if rest else None
    if case in ("wrong place", "moved instead"):
        return _elsewhere(edit, rng)
    if case in ("camera instead", "wrong direction"):
        return _other_camera(edit, case, rng)
    return _turned_subject(source, rng) if case == "subject turned instead" else None


def _elsewhere(edit: Edit, rng: random.Random) -> Scene | None:
    """The object at another valid position than the one before and the one asked for."""
    item = edit.source.objects[edit.object]
    goal = edit.target.objects[edit.object].position
    for _ in range(40):
        position = (rng.uniform(-2, 2), rng.uniform(-1.9, 1.8))
        if min(math.dist(position, goal), math.dist(position, item.position)) < 0.9:
            continue
        scene = _with_item(edit.source, edit.object, replace(item, position=position))
        if is_sound(replace(edit, target=scene, kind="move")):
            return scene
    return None


def _other_camera(edit: Edit, case: str, rng: random.Random) -> Scene | None:
    """An orbit instead of an object's turn, or the opposite orbit of the one asked for."""
    numbers = edit.parameters
    yaw, pitch = -numbers.get("yaw_degrees", 0), -numbers.get("pitch_degrees", 0)
    if case == "camera instead":
        yaw = rng.choice((-15, 15))
    if not (yaw or pitch):
        return None
    camera = orbit_camera(edit.source.camera, yaw_degrees=yaw, pitch_degrees=pitch)
    scene = replace(edit.source, camera=camera)
    return scene if is_sound(replace(edit, target=scene, kind="camera", object=None)) else None


def _turned_subject(source: Scene, rng: random.Random) -> Scene | None:
    boxes = [i for i, item in enumerate(source.objects) if item.shape == "box"]
    if not boxes:
        return None
    index = rng.choice(boxes)
    item = source.objects[index]
    return _with_item(source, index, replace(item, yaw=item.yaw + rng.choice((-45, -30, 30, 45))))


def _with_item(scene: Scene, index: int, item) -> Scene:
    return with_objects(scene, tuple(item if i == index else each for i, each in enumerate(scene.objects)))


def degrade_image(image: Tensor, rng: random.Random) -> Tensor:
    """The image (h, w, 3) with what a decoder and a file do to it: a gain of each channel, noise, JPEG."""
    from PIL import Image

    gains = torch.tensor([1 + rng.uniform(-_GAIN, _GAIN) for _ in range(3)])
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    noisy = image * gains + _NOISE * torch.randn(image.shape, generator=generator)
    file = io.BytesIO()
    Image.fromarray((noisy.clamp(0, 1) * 255).round().byte().numpy()).save(file, "JPEG", quality=_JPEG)
    return open_picture(file.getvalue(), name="JPEG").rgb[0]


def _move_figures(done) -> dict[str, Any]:
    errors, metres = [], []
    for edit, report, before, target in done:
        masks = [each.segmentation[0] == edit.object + 1 for each in (before, target)]
        centers = [mask.nonzero().float().mean(0).flip(0) / mask.shape[1] for mask in masks]
        got = report.figures.get("object_shift_of_width", [math.inf, math.inf])
        errors.append(float((torch.tensor(got) - (centers[1] - centers[0])).norm()))
        length = report.figures.get("object_shift_metres_length", math.inf)
        metres.append(abs(length - math.hypot(*edit.parameters["shift"])))
    figures = _error_figures("move.displacement_error", errors, _DISPLACEMENT_GOAL)
    return figures | _error_figures("move.metres_error", metres, None)


def _turn_figures(done) -> dict[str, Any]:
    """A box looks the same after 90 degrees, so that the error counts up to the next such angle."""
    errors = []
    for edit, report, _, _ in done:
        got = report.figures.get("object_turn_degrees")
        off = math.inf if got is None else abs((got - edit.parameters["degrees"] + 45) % 90 - 45)
        errors.append(off)
    return _error_figures("rotate.turn_error", errors, 10.0)


def _camera_figures(done) -> dict[str, Any]:
    yaw, pitch = [], []
    for edit, report, _, _ in done:
        yaw.append(abs(report.figures["camera_yaw_degrees"] - edit.parameters.get("yaw_degrees", 0)))
        pitch.append(abs(report.figures["camera_pitch_degrees"] - edit.parameters.get("pitch_degrees", 0)))
    both = [max(pair) for pair in zip(yaw, pitch, strict=True)]
    figures = _error_figures("camera.yaw_error", yaw, _ANGLE_GOAL)
    figures |= _error_figures("camera.pitch_error", pitch, _ANGLE_GOAL)
    return figures | _proportion("camera.both_within", [error <= _ANGLE_GOAL for error in both])


_FIGURES = {"move": _move_figures, "rotate": _turn_figures, "camera": _camera_figures}


def _error_figures(name: str, errors: Sequence[float], goal: float | None) -> dict[str, Any]:
    """Mean, standard error and median of the finite errors, and the proportion of all within the goal."""
    known = [error for error in errors if math.isfinite(error)]
    summary = summarize_seeds(known) if known else {"mean": None, "error": None}
    figures = {name: summary["mean"], f"{name}.standard_error": summary["error"]}
    figures |= {f"{name}.median": statistics.median(known) if known else None}
    if goal is not None:
        figures |= _proportion(f"{name}.within", [error <= goal for error in errors])
    return figures


def _proportion(name: str, hits: Sequence[bool]) -> dict[str, Any]:
    interval = proportion_interval(sum(hits), len(hits))
    return {name: sum(hits) / len(hits), f"{name}.interval": list(interval)}


def framing_figures() -> dict[str, Any]:
    """Mean and worst shift, in pixels, of images of odd sizes that were fitted to a bucket and restored."""
    rng = random.Random("framing")
    sizes: list[tuple[int, int]] = []
    while len(sizes) < _FRAMED:
        height, width = rng.randrange(201, 1400, 2), rng.randrange(201, 1400, 2)
        sizes += [(height, width)] if max(height / width, width / height) <= 4 else []
    shifts = [found.mean_px for found in measure_framing(sizes)]
    known = [shift for shift in shifts if math.isfinite(shift)]
    return {
        "framing.alignment_px": statistics.fmean(known),
        "framing.alignment_px.worst": max(known),
        "framing.sizes": len(known),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value
