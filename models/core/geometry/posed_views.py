"""Views in one common frame: world points, and one scale for all of them, cameras included."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .align import match_views
from .camera import invert_pose, transform_points
from .points import depth_to_points, find_intrinsics
from .view import View, percentile

_MIDDLE_HALF = (25.0, 75.0)  # percentiles


@dataclass(frozen=True)
class PickedPixel:
    """One pixel of a batch; counted from 0, from the upper left corner."""

    view: int
    column: int
    row: int


@dataclass(frozen=True)
class ViewScale:
    """How many metres one unit of some views is, and how that was found."""

    factor: float
    found_by: str


def require_poses(view: View, *, purpose: str) -> View:
    """Return self, or raise ValueError: views without poses share no frame."""
    if view.world_to_cam is None:
        raise ValueError(
            f"Expected views with poses (world_to_cam) in one common frame to {purpose}, got {len(view)} "
            "without. Estimate them together, for example with VGGT or with Depth Anything 3 in multi-view "
            "mode."
        )
    return view


def view_centers(view: View) -> Tensor:
    """Camera centers (b, 3) in the world of the poses, in float64."""
    return invert_pose(view.world_to_cam.double())[:, :3, 3]


def views_to_world(view: View, fov_degrees: float | None = None) -> Tensor:
    """World points (b, h, w, 3) of posed views; meaningless where the mask is False."""
    points = depth_to_points(view.depth, find_intrinsics(view, fov_degrees))
    return transform_points(points, invert_pose(view.world_to_cam))


def scale_views(view: View, factor: float) -> View:
    """The views with depth and camera positions times `factor`, which makes them metric."""
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"Expected a finite scale above 0, got {factor:g}. Check the distance or the depth.")
    pose = view.world_to_cam
    if pose is not None:
        pose = pose.clone()
        pose[:, :3, 3] = (pose[:, :3, 3].double() * factor).to(pose)
    depth = (view.depth.double() * factor).float()
    lost = int((~depth[view.mask].isfinite()).sum() + (depth[view.mask] == 0).sum())
    if lost:
        raise ValueError(
            f"Expected depths within float32's range after scaling by {factor:g}, got {lost} outside it. "
            "Check the distance or the depth."
        )
    return replace(view, depth=depth, world_to_cam=pose, units="metric")


def find_scale_by_depth(view: View, metric: View, index: int = 0) -> ViewScale:
    """One scale for all views from a metric depth: of each view, or of the view `index` alone.

    It is the median of metric / own depth over all common pixels.
    """
    if metric.units != "metric":
        raise ValueError(
            "Expected a metric depth, which is in metres, got a relative one. Use a model of metric depth, "
            "or a known distance."
        )
    if len(metric) == 1 and len(view) > 1:
        _check_index(view, index, "the view of the metric depth")
        view = view[index]
    elif len(metric) != len(view):
        raise ValueError(
            f"Expected one metric depth, or one for each of {len(view)} views, got {len(metric)}. Give one "
            "and the index of its view."
        )
    depth, target, mask = match_views(view, metric)
    if not bool(mask.any()):
        raise ValueError(
            "Expected pixels with a depth in both the views and the metric depth, got none in common. Check "
            "their masks and the index of the view."
        )
    ratios = target[mask].double() / depth[mask].double()
    factor = float(percentile(ratios, 50))
    low, high = (float(percentile(ratios, percent)) / factor for percent in _MIDDLE_HALF)
    pixels = f"median over {len(ratios)} pixels, half of them from {low:.3f} to {high:.3f} of it"
    return ViewScale(factor, f"metric depth: {pixels}")


def find_scale_by_points(
    view: View,
    first: PickedPixel,
    second: PickedPixel,
    metres: float,
    *,
    fov_degrees: float | None = None,
) -> ViewScale:
    """The scale that puts the surface points at two pixels `metres` apart; in float64."""
    _check_metres(metres)
    if first.view != second.view:
        require_poses(view, purpose="measure between points of different views")
    here, there = (_point_at(view, pixel, fov_degrees) for pixel in (first, second))
    distance = float((here - there).norm())
    if not distance > 0:
        raise ValueError(
            f"Expected two different points, got pixel ({first.column}, {first.row}) of view {first.view} "
            "twice. Choose another pixel."
        )
    return ViewScale(metres / distance, f"two points {distance:.6g} units apart are {metres:g} metres apart")


def find_scale_by_cameras(view: View, first: int, second: int, metres: float) -> ViewScale:
    """The scale that puts the centers of two cameras `metres` apart."""
    _check_metres(metres)
    require_poses(view, purpose="measure between cameras")
    for index in (first, second):
        _check_index(view, index, "a camera")
    centers = view_centers(view)
    distance = float((centers[first] - centers[second]).norm())
    # float32 poses carry about seven digits
    if not distance > 1e-6 * float(view.depth.max()):
        raise ValueError(
            f"Expected two cameras that stand apart, got cameras {first} and {second} in one place. Choose "
            "two others, or two points."
        )
    words = f"cameras {first} and {second}, {distance:.6g} units apart, are {metres:g} metres apart"
    return ViewScale(metres / distance, words)


def _point_at(view: View, pixel: PickedPixel, fov_degrees: float | None) -> Tensor:
    """The surface point at a pixel's center, in the world of the poses or else in the camera's frame."""
    _check_index(view, pixel.view, "the view of a point")
    height, width = view.depth.shape[1:]
    if not (0 <= pixel.column < width and 0 <= pixel.row < height):
        raise ValueError(
            f"Expected a pixel inside {width} x {height}, got column {pixel.column}, row {pixel.row}. Count "
            "columns and rows from 0 in the upper left corner."
        )
    depth = view.depth[pixel.view, pixel.row, pixel.column].double()
    if not float(depth) > 0:
        raise ValueError(
            f"Expected a depth at column {pixel.column}, row {pixel.row} of view {pixel.view}, got an "
            "invalid pixel. Choose one on a surface."
        )
    intrinsics = find_intrinsics(view, fov_degrees)[pixel.view].double()
    ray = torch.linalg.inv(intrinsics) @ intrinsics.new_tensor([pixel.column + 0.5, pixel.row + 0.5, 1.0])
    if view.world_to_cam is None:
        return ray * depth
    return transform_points(ray * depth, invert_pose(view.world_to_cam[pixel.view].double()))


def _check_metres(metres: float) -> None:
    if not (math.isfinite(metres) and metres > 0):
        raise ValueError(f"Expected a known distance above 0 metres, got {metres:g}. Measure it.")


def _check_index(view: View, index: int, what: str) -> None:
    if not 0 <= index < len(view):
        raise ValueError(
            f"Expected {what} among 0 to {len(view) - 1}, got {index}. There are {len(view)} views, counted "
            "from 0. Choose an index in that range."
        )
