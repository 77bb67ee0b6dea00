"""Fusion of posed views to one point cloud, with a check of each point against the other views."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .align import Each
from .points import PointCloud, find_intrinsics, solid_pixels
from .posed_views import require_poses, views_to_world
from .view import View, percentile
from .view_votes import Votes, count_votes, depth_ranges
from .voxels import merge_voxels

DEFAULT_TOLERANCE = 0.03  # of a depth, within which two views agree
_SUSPICIOUS = 0.25  # of all votes: a scene that holds still has fewer against it, floaters included


@dataclass(frozen=True)
class FusionSettings:
    """What of the views enters the cloud. The defaults keep all but edges and what other views contradict."""

    every: int = 1  # 1 takes every view, 2 every second one, ...
    min_confidence: float = 0.0  # in the unit of the views' confidence
    drop_percent: float = 0.0  # of the pixels, the least confident ones
    edge_rtol: float = 0.04  # as in points.solid_pixels; 0 keeps depth edges
    tolerance: float = DEFAULT_TOLERANCE  # 0: no check across views
    min_views: int = 1  # that see a point, its own included
    voxel_size: float = 0.0  # in the views' unit; 0: no merging
    max_points: int = 1_200_000
    seed: int = 0  # of the choice of max_points

    def __post_init__(self) -> None:
        finite = ("min_confidence", "drop_percent", "edge_rtol", "tolerance", "voxel_size")
        for name in finite:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Expected {name} of 0 or more, got {value:g}. Correct it.")
        for name in ("every", "min_views", "max_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1, got {getattr(self, name)}. Correct it.")
        if not self.drop_percent < 100 or not self.tolerance < 1:
            raise ValueError(
                "Expected drop_percent below 100 and a tolerance below 1, got "
                f"{self.drop_percent:g} and {self.tolerance:g}. Correct them."
            )
        if self.min_views > 1 and self.tolerance == 0:
            raise ValueError(
                f"Expected a tolerance above 0 for min_views of {self.min_views}, got 0. Without it no view "
                "is compared with another."
            )


@dataclass(frozen=True)
class FusedCloud:
    """One cloud of several views, in the world of their poses."""

    cloud: PointCloud  # points, colors and normals in the world; `pixels` is empty: a point has several
    views: View  # those that were fused, with intrinsics and poses
    indices: tuple[int, ...]  # of these views in the batch
    total: int  # views in the batch
    counts: dict[str, int]  # what became of the pixels, in order
    tolerance: float  # of a depth, within which a view sees a point
    notes: tuple[str, ...] = ()

    def thin(self, max_points: int, seed: int = 0) -> FusedCloud:
        """The same with at most `max_points` points, a seeded random choice."""
        if len(self.cloud.points) <= max_points:
            return self
        rows = _random_rows(len(self.cloud.points), max_points, seed).to(self.cloud.points.device)
        return replace(self, cloud=self.cloud.select(rows))

    def describe(self) -> str:
        """The size of the cloud, what was left out and why, and sentences on the overlap."""
        unit = "metres" if self.views.units == "metric" else "relative units"
        sides = self.cloud.points.amax(dim=0) - self.cloud.points.amin(dim=0)
        size = " x ".join(f"{side:.4g}" for side in sides.tolist())
        lines = [f"{len(self.cloud.points)} points of {len(self.views)} views, {size} {unit}"]
        lines += [f"{count} {what}" for what, count in self.counts.items() if count]
        return "\n".join([*lines, *self.notes])


def fuse_views(
    view: View,
    settings: FusionSettings | None = None,
    *,
    fov_degrees: float | None = None,
    each: Each = iter,
) -> FusedCloud:
    """One cloud from posed views: confident pixels off depth edges that no other view sees through.

    A point is dropped where more other views see through it than agree with it, or fewer than `min_views` see
    it. `fov_degrees` is needed where the views have no intrinsics.
    """
    settings = settings or FusionSettings()
    used, indices = _choose_views(view, settings, fov_degrees)
    keep, counts = _choose_pixels(used, settings)
    if settings.voxel_size == 0:  # what is not kept in the end need not be checked
        keep, beyond = _thin_pixels(keep, settings)
        counts["pixels beyond max_points"] = beyond
    points = views_to_world(used)
    ranges = depth_ranges(used) if settings.tolerance > 0 and len(used) > 1 else None
    kept, verdicts = [], []
    for index in each(list(range(len(used)))):
        rows = keep[index].nonzero()
        here = points[index][keep[index]]
        if ranges is not None:
            votes = count_votes(here, index, used, ranges, settings.tolerance)
            survives, verdict = _judge(votes, settings.min_views)
            rows, here = rows[survives], here[survives]
            verdicts.append(verdict)
        kept.append(_columns(used, index, rows, here))
    counts["pixels that other views see through"] = sum(verdict.transparent for verdict in verdicts)
    counts["pixels that too few views see"] = sum(verdict.rare for verdict in verdicts)
    cloud = _join(kept)
    _require_some(len(cloud.points), counts)
    notes = _explain_overlap(verdicts, indices) if verdicts else ()
    if settings.voxel_size > 0:
        merged = merge_voxels(cloud, settings.voxel_size)
        counts["pixels merged into the point of their voxel"] = len(cloud.points) - len(merged.points)
        counts["points beyond max_points"] = max(0, len(merged.points) - settings.max_points)
        cloud = merged
    tolerance = settings.tolerance or DEFAULT_TOLERANCE
    fused = FusedCloud(cloud, used, indices, len(view), counts, tolerance, notes)
    return fused.thin(settings.max_points, settings.seed)


def _choose_views(
    view: View, settings: FusionSettings, fov_degrees: float | None
) -> tuple[View, tuple[int, ...]]:
    """Every `every`-th view, with intrinsics, and the indices."""
    if len(view) == 1 and view.world_to_cam is None:
        raise ValueError(
            "Expected views with poses in one common frame to fuse them, got one view without. Use Point "
            "Cloud from Depth."
        )
    require_poses(view, purpose="fuse them")
    indices = tuple(range(0, len(view), settings.every))
    if settings.min_views > len(indices):
        raise ValueError(
            f"Expected at least min_views = {settings.min_views} views, got {len(indices)}. Lower min_views, "
            "or give more views."
        )
    used = view.select(indices)
    return replace(used, intrinsics=find_intrinsics(used, fov_degrees)), indices


def _choose_pixels(view: View, settings: FusionSettings) -> tuple[Tensor, dict[str, int]]:
    """The pixels (b, h, w) that enter the fusion, and how many did not, by reason."""
    keep = view.mask
    counts = {"pixels invalid or sky": int((~keep).sum())}
    if settings.min_confidence > 0 or settings.drop_percent > 0:
        if view.confidence is None:
            raise ValueError(
                "Expected views with confidence, got none. Set min_confidence and drop_percent to 0."
            )
        sure = keep & (view.confidence >= settings.min_confidence)
        if settings.drop_percent > 0 and bool(sure.any()):
            sure = sure & (view.confidence >= percentile(view.confidence[sure], settings.drop_percent))
        counts["pixels below the confidence"] = int((keep & ~sure).sum())
        keep = sure
    solid = keep & solid_pixels(view, settings.edge_rtol)
    counts["pixels on depth edges"] = int((keep & ~solid).sum())
    _require_some(int(solid.sum()), counts)
    return solid, counts


def _thin_pixels(keep: Tensor, settings: FusionSettings) -> tuple[Tensor, int]:
    """At most `max_points` of the pixels (b, h, w), a seeded random choice, and how many are left out."""
    places = keep.flatten().nonzero()[:, 0]
    if len(places) <= settings.max_points:
        return keep, 0
    thinned = torch.zeros_like(keep).flatten()
    rows = _random_rows(len(places), settings.max_points, settings.seed)
    thinned[places[rows.to(places.device)]] = True
    return thinned.view_as(keep), len(places) - settings.max_points


def _random_rows(count: int, chosen: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=random)[:chosen].sort().values


@dataclass(frozen=True)
class _Verdict:
    """What the other views said of one view's points."""

    transparent: int  # points that more views see through than agree with
    rare: int  # further points that too few views see
    agree: int  # votes for all points
    against: int
    shared: Tensor  # (v,) points of which each view knows the depth


def _judge(votes: Votes, min_views: int) -> tuple[Tensor, _Verdict]:
    """True (n,) for the points that survive."""
    transparent = votes.against > votes.agree
    rare = ~transparent & (1 + votes.agree < min_views)
    numbers = (transparent, rare, votes.agree, votes.against)
    return ~(transparent | rare), _Verdict(*(int(each.sum()) for each in numbers), votes.shared)


def _explain_overlap(verdicts: Sequence[_Verdict], indices: tuple[int, ...]) -> tuple[str, ...]:
    """Sentences on views that share nothing; ValueError if no two views share anything."""
    shared = torch.stack([verdict.shared for verdict in verdicts])
    alone = [str(indices[i]) for i, row in enumerate(shared + shared.T) if not bool(row.any())]
    if len(alone) == len(indices):
        raise ValueError(
            f"Expected views that overlap, got {len(indices)} of which none shows a point of another. Check "
            "that they show one scene and that their poses are of one frame, or set the tolerance to 0."
        )
    notes = []
    if alone:
        notes.append(f"Views {', '.join(alone)} share nothing with the others; they were not checked.")
    votes = [sum(getattr(verdict, name) for verdict in verdicts) for name in ("agree", "against")]
    against = votes[1] / max(1, sum(votes))
    if against > _SUSPICIOUS:
        notes.append(
            f"In {against:.0%} of the comparisons a view sees through the point of another: the poses or the "
            "scales do not fit together, or the scene moved."
        )
    return tuple(notes)


def _columns(view: View, index: int, rows: Tensor, points: Tensor) -> PointCloud:
    """The points of one view with its colors and its normals, turned into the world."""
    row, column = rows.unbind(-1)
    colors = None if view.image is None else view.image[index, row, column]
    normals = None if view.normals is None else view.normals[index, row, column]
    if normals is not None:
        normals = normals @ view.world_to_cam[index, :3, :3]
    return PointCloud(points, colors, normals, rows)


def _join(clouds: list[PointCloud]) -> PointCloud:
    def cat(name: str) -> Tensor | None:
        parts = [getattr(cloud, name) for cloud in clouds]
        return None if parts[0] is None else torch.cat(parts)

    return PointCloud(cat("points"), cat("colors"), cat("normals"), cat("pixels")[:0])


def _require_some(points: int, counts: Mapping[str, int]) -> None:
    if points == 0:
        reasons = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise ValueError(
            f"Expected points after the fusion, got none: {reasons}. Lower the confidence threshold, raise "
            "the edge threshold or the tolerance, or check that the views fit together."
        )
