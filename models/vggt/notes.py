"""Notes on the input images of a reconstruction and on the reliability of its result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.geometry.camera import invert_pose, project, transform_points
from ..core.geometry.points import depth_to_points
from ..core.geometry.view import View
from .framing import Frame

RELIABLE = 1.2  # median confidence below which a view's depth is reported as unreliable; 1 is the lowest
SAMPLES = 24  # pixels a side of the grid on which the overlap of two views is measured
SAME_DEPTH = 0.1  # relative depth difference up to which two views see the same point
SAME_COLOR = 0.1  # largest channel difference up to which they see the same point
SHARED = 0.1  # fraction of a view's points that another view must see, or it shares nothing
NAMED = 6  # views named in one sentence


def describe_inputs(
    images: Sequence[Tensor], frames: Sequence[Frame], size: tuple[int, int]
) -> tuple[str, ...]:
    """Cropping and padding of the images (h, w, 3), and which images carry no information."""
    notes = []
    if len(images) > 1:
        notes.append(
            "View 0's camera is the common frame (views are counted from 0): another order gives another "
            "frame."
        )
    cut = [i for i, frame in enumerate(frames) if min(frame.offset) < 0]
    if cut:
        notes.append(f"{name_views(cut)}: cropped above and below, where there is no depth.")
    elif any(max(frame.offset) > 0 for frame in frames):
        notes.append(f"The views are padded to {size[1]} x {size[0]} pixels for the network, and uncropped.")
    plain = [i for i, image in enumerate(images) if float(image.max() - image.min()) < 1 / 255]
    if plain:
        notes.append(f"{name_views(plain)}: one color all over, so depth and camera mean nothing there.")
    known, equal = {}, []
    for i, image in enumerate(images):
        key = (tuple(image.shape), float(image.double().sum()))
        if key in known and torch.equal(image, images[known[key]]):
            equal.append(i)
        known.setdefault(key, i)
    if equal:
        notes.append(f"{name_views(equal)}: equal to an earlier view, so nothing new. Leave one out.")
    return tuple(notes)


def describe_views(views: Sequence[View]) -> tuple[str, ...]:
    """Which views have low confidence, and which share no surface with any other."""
    notes = []
    medians = [float(view.confidence[view.mask].median()) if bool(view.mask.any()) else 1.0 for view in views]
    unreliable = [i for i, median in enumerate(medians) if median < RELIABLE]
    if unreliable:
        lowest = min(medians[i] for i in unreliable)
        notes.append(
            f"{name_views(unreliable)}: low confidence (median down to {lowest:.2f}; 1 is the lowest). The "
            "depth there is a guess."
        )
    alone = find_isolated_views(views)
    if alone:
        notes.append(
            f"{name_views(alone)}: no other view sees the same surface. Give views that overlap, of one "
            "still scene."
        )
    return tuple(notes)


def name_views(indices: Sequence[int]) -> str:
    """Views by their indices, counted from 0 as in the nodes' widgets."""
    numbers = [str(i) for i in indices]
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"View{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:NAMED])}{more}"


def find_isolated_views(views: Sequence[View]) -> list[int]:
    """Indices of views whose points no other view sees at the same depth and color, but for a fraction below
    SHARED.
    """
    if len(views) < 2:
        return []
    samples = [sample_points(view) for view in views]
    return [
        i
        for i, sample in enumerate(samples)
        if not any(shared_fraction(*sample, view) >= SHARED for j, view in enumerate(views) if j != i)
    ]


def sample_points(view: View) -> tuple[Tensor, Tensor]:
    """World points (n, 3) of a view on a coarse grid of its pixels, and their colors (n, 3)."""
    height, width = view.depth.shape[-2:]
    rows = torch.linspace(0, height - 1, min(SAMPLES, height)).long()
    columns = torch.linspace(0, width - 1, min(SAMPLES, width)).long()
    maps = (depth_to_points(view.depth, view.intrinsics), view.image, view.mask)
    points, colors, known = (values[0][rows][:, columns] for values in maps)
    return transform_points(points[known], invert_pose(view.world_to_cam[0])), colors[known]


def shared_fraction(points: Tensor, colors: Tensor, view: View) -> float:
    """The fraction of world points (n, 3) that a view sees at about their depth and in about their color."""
    if not len(points):
        return 0.0
    height, width = view.depth.shape[-2:]
    pixels, depth = project(transform_points(points, view.world_to_cam[0]), view.intrinsics[0])
    x, y = pixels.floor().long().unbind(-1)
    inside = (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = view.depth[0][y.clamp(0, height - 1), x.clamp(0, width - 1)]
    seen = view.image[0][y.clamp(0, height - 1), x.clamp(0, width - 1)]
    same = inside & (found > 0) & ((found - depth).abs() < SAME_DEPTH * depth)
    same = same & ((seen - colors).abs().amax(-1) < SAME_COLOR)
    return float(same.float().mean())
