"""Depth maps to points: pixels to camera space, depth edges, colored clouds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .camera import (
    ASSUMED_FOV,
    FLIP_Y_Z,
    camera_info,
    intrinsics_from_fov,
    invert_pose,
    pixel_centers,
    resize_camera,
    transform_points,
    unproject,
)
from .view import View

Frame = Literal["camera", "world"]

MAX_OUTLIER_POINTS = 200_000  # outlier removal compares every pair of points


@dataclass(frozen=True)
class PointCloud:
    """The points of one image, in row-major pixel order. OpenCV camera frame: x right, y down, z forward."""

    points: Tensor  # (n, 3)
    colors: Tensor | None  # (n, 3) in [0, 1]
    normals: Tensor | None  # (n, 3)
    pixels: Tensor  # (n, 2) int64: row, column

    def centered(self) -> PointCloud:
        """The same cloud around its median on each axis."""
        if not len(self.points):
            return self
        # torch's median is the lower of two
        low, high = self.points.median(dim=0).values, -(-self.points).median(dim=0).values
        return PointCloud(self.points - (low + high) / 2, self.colors, self.normals, self.pixels)

    def select(self, rows: Tensor) -> PointCloud:
        """The points of these rows; `pixels` may be empty."""
        parts = (None if part is None else part[rows] for part in (self.points, self.colors, self.normals))
        return PointCloud(*parts, self.pixels[rows] if len(self.pixels) else self.pixels)


def depth_to_points(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """z-depth (b, h, w) and intrinsics (b, 3, 3) (pixels of this map) -> points (b, h, w, 3) through the
    pixel centers, OpenCV frame.
    """
    centers = pixel_centers(*depth.shape[-2:], device=depth.device)
    return unproject(centers.expand(*depth.shape, 2), depth, intrinsics)


def depth_edges(depth: Tensor, rtol: float) -> Tensor:
    """True where the depth (b, h, w) varies by more than rtol times itself within 3 x 3 pixels.

    The neighbors of holes (0) are edges.
    """
    from kornia.morphology import gradient  # late: exports without edges do not need it

    window = torch.ones(3, 3, dtype=depth.dtype, device=depth.device)
    # with the default max_val of 1e4 the border of a map beyond that depth could count as an edge
    spread = gradient(depth.unsqueeze(1), window, max_val=math.inf).squeeze(1)
    return spread > rtol * depth.clamp(min=1e-6)


def solid_pixels(view: View, edge_rtol: float) -> Tensor:
    """True (b, h, w) where there is a depth, and no depth edge within 3 x 3 pixels.

    `edge_rtol=0` keeps the edges.
    """
    return view.mask & ~depth_edges(view.depth, edge_rtol) if edge_rtol > 0 else view.mask


def view_to_point_cloud(
    view: View,
    *,
    fov_degrees: float | None = None,
    edge_rtol: float = 0.04,
    max_points: int = 1_200_000,
    remove_outliers: bool = False,
    seed: int = 0,
) -> tuple[PointCloud, ...]:
    """One cloud per image: valid pixels away from depth edges, at most `max_points` of them (a seeded random
    choice).

    `fov_degrees` is the horizontal field of view, needed when the view has no intrinsics. `edge_rtol=0` keeps
    the edges.
    """
    points = depth_to_points(view.depth, find_intrinsics(view, fov_degrees))
    keep = solid_pixels(view, edge_rtol)
    clouds = []
    for i in range(len(view)):
        pixels = keep[i].nonzero()
        if remove_outliers:
            pixels = pixels[~find_outliers(points[i][keep[i]])]
        if len(pixels) > max_points:
            chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:max_points]
            pixels = pixels[chosen.sort().values.to(pixels.device)]
        row, column = pixels.unbind(-1)
        parts = (x if x is None else x[i, row, column] for x in (points, view.image, view.normals))
        clouds.append(PointCloud(*parts, pixels))
    return tuple(clouds)


def find_intrinsics(view: View, fov_degrees: float | None) -> Tensor:
    """The view's own intrinsics (b, 3, 3), or those of a centered camera with this field of view."""
    if view.intrinsics is not None:
        return view.intrinsics
    if fov_degrees is None:
        raise ValueError(
            "Expected a view with a camera, got one without, so its points have no position. Give "
            f"fov_degrees ({ASSUMED_FOV:g} is usual) or set its intrinsics."
        )
    height, width = view.depth.shape[-2:]
    return intrinsics_from_fov(fov_degrees, width, height).to(view.depth.device).expand(len(view), 3, 3)


def viewer_pose(view: View, frame: Frame) -> Tensor:
    """Poses (b, 4, 4) from the camera to the axes of glTF, Blender and ComfyUI's viewer (y up): the camera's
    own frame, or its world.
    """
    if frame == "world":
        if view.world_to_cam is None:
            raise ValueError(
                "Expected a view with a pose for the frame 'world', got one without. Choose the frame "
                "'camera'."
            )
        return invert_pose(view.world_to_cam)
    return torch.diag(torch.tensor([*FLIP_Y_Z, 1.0], device=view.depth.device)).expand(len(view), 4, 4)


def view_camera(view: View, *, fov_degrees: float | None = None, frame: Frame = "camera") -> dict[str, Any]:
    """ComfyUI's LOAD3D_CAMERA of a View with batch 1: it orbits the median depth, with clipping planes well
    before and behind the scene.
    """
    viewer_pose(view, frame)
    height, width = view.depth.shape[-2:]
    depth = view.require_valid().depth[view.mask]
    pose = view.world_to_cam[0] if frame == "world" else None
    intrinsics, middle = find_intrinsics(view, fov_degrees)[0], float(depth.median())
    return camera_info(
        intrinsics,
        width,
        height,
        pose,
        target_distance=middle,
        near=float(depth.min()) / 10,
        far=float(depth.max()) * 10,
    )


def point_cloud_camera(
    view: View, cloud: PointCloud, *, fov_degrees: float | None = None, frame: Frame = "camera"
) -> dict[str, Any]:
    """The LOAD3D_CAMERA of a View with batch 1 for ComfyUI's point cloud viewer, which recenters and rescales
    clouds.

    There the middle of the cloud's bounding box is the origin and its farthest point has the distance 1
    (frontend 1.49, PointCloudModelAdapter), while the camera is not transformed. Meshes are shown unscaled:
    use view_camera for them.
    """
    points = transform_points(cloud.points, viewer_pose(view, frame)[0])
    return camera_beside_cloud(view_camera(view, fov_degrees=fov_degrees, frame=frame), points)


def camera_beside_cloud(camera: dict[str, Any], points: Tensor) -> dict[str, Any]:
    """A LOAD3D_CAMERA of the frame of these points (n, 3), for the viewer that centers and scales them."""
    middle = (points.amin(dim=0) + points.amax(dim=0)) / 2
    radius = float((points - middle).norm(dim=1).max()) or 1.0  # a single point is not scaled
    return resize_camera(camera, middle, radius)


def find_outliers(points: Tensor, *, neighbors: int = 5, deviations: float = 1.0) -> Tensor:
    """True (n,) where the mean distance to the nearest `neighbors` is this many standard deviations above
    the average.
    """
    count = len(points)
    if count > MAX_OUTLIER_POINTS:
        raise ValueError(
            f"Expected at most {MAX_OUTLIER_POINTS} points for outlier removal, which compares every pair, "
            f"got {count}. Use fewer points."
        )
    if count <= neighbors:
        return torch.zeros(count, dtype=torch.bool, device=points.device)
    rows = max(1, 2**24 // count)
    # the nearest point of all is the point itself; squared differences, because the matrix form of cdist
    # loses small distances
    exact = "donot_use_mm_for_euclid_dist"
    distances = (torch.cdist(part, points, compute_mode=exact) for part in points.split(rows))
    nearest = (each.topk(neighbors + 1, largest=False).values[:, 1:] for each in distances)
    mean = torch.cat([each.mean(dim=1) for each in nearest])
    return mean > mean.mean() + deviations * mean.std(correction=0)
