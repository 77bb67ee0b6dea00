"""A short camera swing around one image and its depth.

No content is generated: what the motion disoccludes is dimmed, like a shadow, and where the image ends or has
no depth a neutral background remains. Every frame is a z-buffer over the points of the relief at twice the
frame's size, scaled down for anti-aliasing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.camera import fov_from_intrinsics, intrinsics_from_fov
from ..geometry.view import View, percentile
from .relief import make_relief, sharpen_disparity

ASSUMED_FOV = 55.0
_SUPERSAMPLES = 2
# points per supersampled pixel and axis; larger cracks from perspective are closed
_DENSITY = 1.35
_LARGEST_SOURCE = 768
# beyond this many center distances parallax hardly changes, but errors of depth would be visible
_BACKDROP = 6.0
_STEP_BACK = 1.15
_CRACK = 3  # supersampled pixels to either side
_TOP, _BOTTOM = (0.215, 0.224, 0.248), (0.135, 0.141, 0.157)


@dataclass(frozen=True)
class Orbit:
    """Frames of one loop, the field of view they were rendered with, and whether it was assumed for lack of a
    camera.
    """

    frames: Tensor  # (t, h, w, 3) in [0, 1]
    fov_degrees: float
    fov_was_assumed: bool


def render_orbit(
    view: View,
    *,
    frames: int = 30,
    size: int = 320,
    yaw_degrees: float = 8.0,
    pitch_degrees: float = 5.0,
    fov_degrees: float | None = None,
) -> Orbit:
    """Swing a camera once around the scene of a View of batch 1 with an image; ``size`` is the longer side of
    a frame.

    The field of view is ``fov_degrees``, else the View's own, else 55 degrees are assumed and reported as
    such. The last frame joins the first. Frame 0 is seen from above, a quarter on from the right, half way on
    from the image's own camera, three quarters on from the left.
    """
    if len(view) != 1 or view.image is None:
        raise ValueError(
            f"Expected a View of one depth map with its image, got a batch of {len(view)}. Pass view[0], "
            "created with image=."
        )
    if frames < 1 or size < 16:
        raise ValueError(
            f"Expected at least 1 frame of at least 16 pixels, got {frames} of {size}. Correct them."
        )
    fov, assumed = _field_of_view(view, fov_degrees)
    q, image = _prepare(view)
    height, width = q.shape
    center = 1 / float(percentile(q[q > 0], 65))
    backdrop = 1 / (_BACKDROP * center)
    scale = _SUPERSAMPLES * size / max(height, width)
    canvas = [max(1, round(side * scale / _SUPERSAMPLES)) * _SUPERSAMPLES for side in (height, width)]
    intrinsics = intrinsics_from_fov(fov, canvas[1], canvas[0])
    # pixels that a point at infinity travels when the camera swings fully, for a disparity of 1 / center
    travel = float(intrinsics[0, 0]) * math.tan(math.radians(max(abs(yaw_degrees), abs(pitch_degrees))))
    relief = make_relief(
        torch.where(q > 0, q.clamp_min(backdrop), q),
        image,
        max(1, math.ceil(_DENSITY * scale)),
        intrinsics_from_fov(fov, width, height),
        backdrop=backdrop,
        curtain_density=1.3 * travel * center,
    )
    # coordinates in rows of their own: every pass over them reads memory in order
    surface = relief.points.T.contiguous(), relief.colors
    curtain = relief.curtain_points.T.contiguous(), relief.curtain_colors
    background = _backdrop(*canvas)
    pictures = torch.empty(frames, canvas[0] // _SUPERSAMPLES, canvas[1] // _SUPERSAMPLES, 3)
    for index in range(frames):
        angle = 2 * math.pi * index / frames
        turn = _turn(center, yaw_degrees * math.sin(angle), pitch_degrees * (1 + math.cos(angle)) / 2)
        picture = _draw((surface, curtain), turn, intrinsics, background, crack=0.06 / center)
        pictures[index] = F.avg_pool2d(picture.movedim(-1, 0), _SUPERSAMPLES).movedim(0, -1)
    return Orbit(pictures, fov, assumed)


def _field_of_view(view: View, fov_degrees: float | None) -> tuple[float, bool]:
    """Horizontal angle, and whether it was assumed."""
    if fov_degrees is not None:
        return float(fov_degrees), False
    if view.intrinsics is None:
        return ASSUMED_FOV, True
    height, width = view.depth.shape[1:]
    return float(fov_from_intrinsics(view.intrinsics[0], width, height)[0]), False


def _prepare(view: View) -> tuple[Tensor, Tensor]:
    """Disparity (h, w) and image (h, w, 3), cleaned, and downscaled to what frames can show."""
    view.require_valid()
    depth, image = view.depth[0].cpu(), view.image[0].detach().cpu().float()
    q = torch.where(depth > 0, 1 / depth, depth)
    step = math.ceil(max(q.shape) / _LARGEST_SOURCE)
    height, width = q.shape[0] // step * step, q.shape[1] // step * step
    if min(height, width) < 2 * step:
        raise ValueError(
            f"Expected an image wide enough to orbit, got {q.shape[1]} x {q.shape[0]} pixels. Give a "
            "larger one."
        )
    q, image = q[:height, :width], image[:height, :width]
    if step > 1:
        # depths must not be averaged: the middle pixel, or the nearest if the middle has none
        middle = q[step // 2 :: step, step // 2 :: step]
        q = torch.where(middle > 0, middle, F.max_pool2d(q[None, None], step)[0, 0])
        image = F.avg_pool2d(image.movedim(-1, 0), step).movedim(0, -1)
    return sharpen_disparity(q, image), image


def _turn(center: float, yaw_degrees: float, pitch_degrees: float) -> Tensor:
    """The pose (4, 4) that swings the camera right and up around (0, 0, center), and steps it back a little.
    """
    yaw, pitch = math.radians(yaw_degrees), math.radians(pitch_degrees)
    about_y = torch.tensor([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    about_x = torch.tensor(
        [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]]
    )
    pivot = torch.tensor([0.0, 0.0, center])
    pose = torch.eye(4)
    pose[:3, :3] = about_x @ about_y
    pose[:3, 3] = pivot * _STEP_BACK - pose[:3, :3] @ pivot
    return pose


Cloud = tuple[Tensor, Tensor]  # points (3, n), colors (n, 4)


def _draw(
    clouds: tuple[Cloud, Cloud], pose: Tensor, intrinsics: Tensor, background: Tensor, *, crack: float
) -> Tensor:
    """A relief's points and curtains over ``background`` (h, w, 3), curtains only where there is no point.

    Cracks up to disparity ``crack`` are closed.
    """
    size = tuple(background.shape[:2])
    (picture, q), (curtain, curtain_q) = (_splat(*cloud, pose, intrinsics, size) for cloud in clouds)
    picture, q = torch.where((q > 0)[..., None], picture, curtain), torch.where(q > 0, q, curtain_q)
    picture = _close_cracks(picture, q, crack)
    return picture[..., :3] + (1 - picture[..., 3:]) * background


def _splat(
    points: Tensor, colors: Tensor, pose: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Z-buffer points (3, n): the color (h, w, 4) and disparity (h, w) of the nearest one in each pixel, 0
    where there is none.
    """
    height, width = size
    x, y, q = (pose[:3, :3] @ points).add_(pose[:3, 3:]).unbind(0)
    q.reciprocal_()
    x.mul_(q).mul_(intrinsics[0, 0]).add_(intrinsics[0, 2]).floor_()
    y.mul_(q).mul_(intrinsics[1, 1]).add_(intrinsics[1, 2]).floor_()
    seen = (q > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # all others go to one pixel beyond the last
    pixel = torch.where(seen, y.mul_(width).add_(x), height * width).long()
    nearest = torch.zeros(height * width + 1).scatter_reduce_(0, pixel, q, "amax")
    front = (seen & (q == nearest[pixel])).nonzero()[:, 0]
    picture = torch.zeros(height * width, 4)
    picture[pixel[front]] = colors[front]
    return picture.reshape(height, width, 4), nearest[:-1].reshape(height, width)


def _close_cracks(picture: Tensor, q: Tensor, crack: float) -> Tensor:
    """Fill empty pixels between two points of one surface.

    What an object disoccludes lies between two surfaces and is not filled.
    """
    for axis in (0, 1):
        empty = (q == 0).nonzero()
        (before, back), (after, ahead) = (_nearest_filled(q, empty, axis, way) for way in (-1, 1))
        between = (before > 0) & (after > 0) & ((before - after).abs() < crack)
        if not bool(between.any()):
            continue
        place = empty[between].unbind(1)
        picture[place] = (
            picture[_moved(place, axis, -back[between])] + picture[_moved(place, axis, ahead[between])]
        ) / 2
        q = q.index_put(place, (before[between] + after[between]) / 2)
    return picture


def _nearest_filled(q: Tensor, pixels: Tensor, axis: int, direction: int) -> tuple[Tensor, Tensor]:
    """Disparity of the nearest filled pixel before (-1) or after (1) these (n, 2) along an axis, 0 if none is
    within reach, and its distance.
    """
    found, distance = torch.zeros(len(pixels)), torch.zeros(len(pixels), dtype=torch.long)
    lines, length = list(pixels.unbind(1)), q.shape[axis]
    for step in range(_CRACK, 0, -1):  # the nearest is written last
        at = pixels[:, axis] + direction * step
        lines[axis] = at.clamp(0, length - 1)
        neighbor = torch.where((at >= 0) & (at < length), q[tuple(lines)], 0.0)
        new = neighbor > 0
        found, distance = torch.where(new, neighbor, found), torch.where(new, step, distance)
    return found, distance


def _moved(place: tuple[Tensor, Tensor], axis: int, by: Tensor) -> tuple[Tensor, Tensor]:
    return (place[0] + by, place[1]) if axis == 0 else (place[0], place[1] + by)


def _backdrop(height: int, width: int) -> Tensor:
    """A neutral gradient (h, w, 3), lighter above, with darker corners."""
    y, x = torch.linspace(0, 1, height)[:, None, None], torch.linspace(-1, 1, width)[None, :, None]
    color = torch.tensor(_TOP) * (1 - y) + torch.tensor(_BOTTOM) * y
    return color * (1 - 0.25 * (x**2 + (2 * y - 1) ** 2) / 2)
