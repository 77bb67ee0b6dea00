"""Whether an edit did what was requested: measured from the images before and after and the depth before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry.camera import scale_intrinsics, unproject
from ..geometry.points import find_intrinsics
from ..geometry.resize import resize_antialiased
from ..geometry.view import View
from .edit_camera import CameraMotion, estimate_motion
from .edit_change import box_of_mask, changed_pixels, find_red_box, grow_mask, red_lines, warp_image
from .edit_object import ObjectMatch, mask_center, match_object, split_change
from .edit_turn import turn_of_object
from .edit_verdict import EditRequest, EditVerdict, judge_edit
from .edit_viewpoint import Viewpoint, angle_between, describe_motion, find_up, viewpoint_error

_LONGEST = 512  # longer side in pixels of the images that are measured
_STILL_DEGREES, _STILL_SHIFT, _STILL_ZOOM = 1.0, 0.02, 0.02  # of a static camera; shift in median depths
_STILL_CHANGED = 0.003  # of the background: with fewer changed pixels the camera is static
_IMPROVEMENT = 0.35  # least `CameraMotion.improvement` of a moving camera


@dataclass(frozen=True)
class EditReport:
    """What was measured, the verdict, and at the measured size images and masks (h, w) to draw it with."""

    verdict: EditVerdict
    figures: dict[str, Any]
    before: Tensor  # (h, w, 3)
    after: Tensor  # (h, w, 3)
    object_before: Tensor
    object_after: Tensor
    changed: Tensor
    target: Tensor | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scene:
    """One pair at the size at which it is measured."""

    before: Tensor
    after: Tensor
    view: View
    intrinsics: Tensor
    object_before: Tensor | None
    object_after: Tensor | None
    view_after: View | None
    target: Tensor | None


def check_edit(
    before: Tensor,
    after: Tensor,
    view: View,
    request: EditRequest,
    *,
    object_before: Tensor | None = None,
    object_after: Tensor | None = None,
    view_after: View | None = None,
    fov_degrees: float | None = None,
    static_camera: bool = False,
) -> EditReport:
    """Check one edit: images (h, w, 3), the View of the image before (batch 1), masks (h, w) of the object
    before and after, the View of the image after. `static_camera`: the camera is known not to move, and its
    motion is not estimated, which takes most of the time."""
    scene = _scale_scene(
        before,
        after,
        view,
        fov_degrees,
        target=request.target,
        object_before=object_before,
        object_after=object_after,
        view_after=view_after,
    )
    motion, still = (_no_motion(scene), True) if static_camera else _measure_camera(scene)
    up = find_up(scene.view, scene.intrinsics)
    viewpoint = describe_motion(motion, scene.view, up)
    expected, known, old = _expect(scene, motion, still)
    changed = changed_pixels(expected, scene.after, known)
    target_box = None if scene.target is None or request.kind != "move object" else box_of_mask(scene.target)
    boxed = find_red_box(scene.after, target_box) is not None
    if boxed:  # its lines are not part of an object
        changed = changed & ~grow_mask(red_lines(scene.after)[0], 1)
    match, old = _measure_object(scene, expected, changed, old, seek=request.kind != "move camera" or still)
    figures = _camera_figures(motion, viewpoint, up, request, still=still)
    figures |= _object_figures(scene, request, old, match, changed=changed, up=up, still=still)
    figures["red_box_remained"] = boxed
    figures |= _rest_figures(old, match, changed, known)
    return EditReport(
        judge_edit(request, figures),
        figures,
        scene.before,
        scene.after,
        old,
        match.mask,
        changed,
        scene.target,
        _notes(scene, request, motion, still),
    )


def _scale_scene(
    before, after, view, fov_degrees, *, target, object_before, object_after, view_after
) -> _Scene:
    """Images, masks and Views resized for the measurement; a View may have another size than the images."""
    height, width = before.shape[:2]
    shrink = min(1.0, _LONGEST / max(height, width))
    size = (max(8, round(height * shrink)), max(8, round(width * shrink)))
    before, after = (_resize_image(image, size) for image in (before, after))
    masks = [
        None if mask is None else _resize_mask(mask, size) for mask in (object_before, object_after, target)
    ]
    small = fit_view(view, size, fov_degrees)
    small_after = None if view_after is None else fit_view(view_after, size, fov_degrees)
    return _Scene(before, after, small, small.intrinsics, masks[0], masks[1], small_after, masks[2])


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    return resize_antialiased(image.permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)


def _resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0] > 0.5


def fit_view(view: View, size: tuple[int, int], fov_degrees: float | None) -> View:
    """A View with batch 1 at another size (h, w), with intrinsics: its own, or those of the field of view."""
    nearest = {"size": size, "mode": "nearest-exact"}
    sky = None if view.sky is None else F.interpolate(view.sky[:, None].float(), **nearest)[:, 0] > 0.5
    return View.from_depth(
        F.interpolate(view.depth[:, None], **nearest),
        units=view.units,
        sky=sky,
        intrinsics=scale_intrinsics(find_intrinsics(view, fov_degrees), tuple(view.depth.shape[1:]), size),
        world_to_cam=view.world_to_cam,
    )


def _no_motion(scene: _Scene) -> CameraMotion:
    return CameraMotion(torch.eye(4, device=scene.view.depth.device), 1.0, 1.0, 1.0, 0.0)


def _measure_camera(scene: _Scene) -> tuple[CameraMotion, bool]:
    """The camera's motion, and whether the camera is static, so that the background does not move."""
    static = scene.view.mask[0]
    if scene.object_before is not None:
        static = static & ~grow_mask(scene.object_before, 2)
    no_motion = _no_motion(scene)
    changed = changed_pixels(scene.before, scene.after, torch.ones_like(static))
    if bool(changed[static].float().mean() < _STILL_CHANGED):
        return no_motion, True
    sky = None if scene.view.sky is None else scene.view.sky[0]
    motion = estimate_motion(
        scene.before, scene.after, scene.view.depth[0], scene.intrinsics[0], static=static, sky=sky
    )
    unit = float(scene.view.depth[scene.view.mask].median())
    stands = angle_between(no_motion.pose, motion.pose) < _STILL_DEGREES
    stands = stands and float(motion.pose[:3, 3].norm()) < _STILL_SHIFT * unit
    stands = stands and abs(math.log(motion.focal_ratio)) < _STILL_ZOOM
    return (no_motion, True) if stands or motion.improvement < _IMPROVEMENT else (motion, False)


def _expect(scene: _Scene, motion: CameraMotion, still: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The image before and the object's mask warped to the camera after, and where they are known."""
    everywhere = torch.ones_like(scene.view.mask[0])
    if still:
        return scene.before, everywhere, scene.object_before
    options = {"focal_ratio": motion.focal_ratio}
    geometry = (scene.view.depth[0], scene.intrinsics[0], motion.pose)
    warped = warp_image(scene.before, *geometry, **options)
    mask = scene.object_before
    if mask is not None:
        mask = warp_image(mask[..., None].float().expand(-1, -1, 3), *geometry, **options).image[..., 0] > 0.5
    return warped.image, warped.known, mask


def _measure_object(scene, expected, changed, old, *, seek: bool) -> tuple[ObjectMatch, Tensor]:
    """The object after, and its mask before, warped to the camera after; without masks it is detected."""
    none = torch.zeros_like(changed)
    if old is None or not bool(old.any()):
        if not seek:
            return ObjectMatch(none, False, 0.0), none
        old, _ = split_change(expected, scene.after, changed, scene.view.depth[0])
    if int(old.sum()) < 9:
        return ObjectMatch(none, False, 0.0), none
    match = match_object(expected, scene.after, changed, old)
    if scene.object_after is not None:
        match = ObjectMatch(scene.object_after, match.remained, match.consistency)
    return match, old


def _camera_figures(
    motion, viewpoint: Viewpoint, up: Tensor, request: EditRequest, *, still: bool
) -> dict[str, Any]:
    figures = {
        "camera_found": motion.is_found,
        "camera_moved": not still,
        "camera_yaw_degrees": viewpoint.yaw_degrees,
        "camera_pitch_degrees": viewpoint.pitch_degrees,
        "camera_translation": list(viewpoint.translation),
        "camera_distance_ratio": viewpoint.distance_ratio,
        "camera_focal_ratio": viewpoint.focal_ratio,
        "camera_magnification": viewpoint.magnification,
        "camera_agreement": motion.agreement,
        "camera_in_view": motion.in_view,
    }
    if request.kind == "move camera":
        angles = {"yaw": request.yaw_degrees, "pitch": request.pitch_degrees}
        figures["viewpoint_error"] = viewpoint_error(motion, viewpoint, up, **angles)
    return figures


def _object_figures(scene, request, old, match, *, changed, up, still) -> dict[str, Any]:
    figures: dict[str, Any] = {"object_seen": bool(old.any()), "object_found": match.is_found}
    height, width = old.shape
    figures["original_remained"] = match.remained
    if bool(old.any()):
        whole = old | match.mask
        figures["object_changed"] = float((changed & whole).sum() / whole.sum())
        figures["object_size"] = math.sqrt(float(old.sum())) / width
    if bool(old.any()) and match.is_found:
        start, end = mask_center(old), mask_center(match.mask)
        shift = (end[0] - start[0], end[1] - start[1])
        figures["object_shift_of_width"] = [shift[0] / width, shift[1] / width]
        figures["object_displacement_of_width"] = math.hypot(*shift) / width
        figures["object_scale"] = math.sqrt(float(match.mask.sum() / old.sum()))
        figures["object_consistency"] = match.consistency
        figures |= _space_figures(scene, old, match, (start, end)) if still else {}
        if scene.view_after is not None and still:
            masks = {"old": old, "new": match.mask, "changed": changed}
            turn = turn_of_object(scene.view, scene.view_after, scene.intrinsics, **masks, up=up)
            figures["object_turn_degrees"] = turn
    if request.kind == "move object" and scene.target is not None and match.is_found:
        boxes = box_of_mask(match.mask), box_of_mask(scene.target)
        overlap = boxes[0].intersection_over_union(boxes[1])
        goal, end = mask_center(scene.target), mask_center(match.mask)
        figures["target_iou"] = overlap
        figures["target_distance_of_width"] = math.hypot(end[0] - goal[0], end[1] - goal[1]) / width
        figures["move_score"] = math.sqrt(overlap * match.consistency)
    return figures


def _space_figures(scene: _Scene, old: Tensor, match: ObjectMatch, centers) -> dict[str, Any]:
    """Displacement of the object in 3D: from the depth after if given, else from its change of size.

    `centers`: of the masks before and after, (x, y) in pixels.
    """
    depth = scene.view.depth[0]
    inside = old & scene.view.mask[0]
    if not bool(inside.any()):
        return {}
    first = depth[inside].median()
    last = first * math.sqrt(float(old.sum() / match.mask.sum()))
    if scene.view_after is not None:
        seen = match.mask & scene.view_after.mask[0]
        last = scene.view_after.depth[0][seen].median() if bool(seen.any()) else last
    pixels = torch.tensor(centers, device=depth.device)
    points = unproject(pixels, torch.stack([first, last]), scene.intrinsics[0])
    shift = points[1] - points[0]
    name = "object_shift_metres" if scene.view.units == "metric" else "object_shift_relative"
    return {name: [float(shift[0]), float(-shift[1]), float(shift[2])], f"{name}_length": float(shift.norm())}


def _rest_figures(old, match, changed, known) -> dict[str, Any]:
    """Fraction of changed pixels outside the object's masks before and after."""
    rim = max(2, max(old.shape) // 64)
    rest = known & ~grow_mask(old | match.mask, rim)
    share = float((changed & rest).sum() / rest.sum().clamp_min(1))
    return {
        "rest_changed": share,
        "changed": float(changed.float().mean()),
        "compared": float(known.float().mean()),
    }


def _notes(scene: _Scene, request: EditRequest, motion: CameraMotion, still: bool) -> tuple[str, ...]:
    notes = []
    if not still and not motion.is_found:
        notes.append("Too little of the scene was found again to trust the camera's motion.")
    if scene.view.units == "relative":
        notes.append("The depth is relative: lengths are in its unit, not in metres.")
    if scene.object_before is None and request.kind in ("move object", "rotate object"):
        notes.append("Without object_mask the object is a guess: see whether its blue outline is right.")
    if scene.view_after is None and request.kind == "rotate object":
        notes.append("Without a depth of the image after, the object's turn in degrees is not measured.")
    return tuple(notes)
