"""Depth maps to grid meshes: one vertex per valid pixel, no triangle across a depth edge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .points import depth_to_points, find_intrinsics
from .view import View

BAND = 128  # rows of cells


@dataclass(frozen=True)
class GridMesh:
    """The surface of one image, OpenCV camera frame.

    Triangles run counter-clockwise seen from the camera, in glTF axes too.
    """

    vertices: Tensor  # (n, 3)
    faces: Tensor  # m 3 int64
    uvs: Tensor  # (n, 2): the pixel's center in widths and heights, the origin in the upper left corner
    pixels: Tensor  # (n, 2) int64: row, column

    def require_faces(self) -> GridMesh:
        """Return self, or raise ValueError if no triangle is left."""
        if len(self.faces) == 0:
            raise ValueError(
                "Expected at least one triangle, got none: every pixel is invalid or a depth edge. Raise "
                "the edge threshold, or lower the stride."
            )
        return self


def view_to_mesh(
    view: View, *, fov_degrees: float | None = None, edge_rtol: float = 0.04, stride: int = 1
) -> tuple[GridMesh, ...]:
    """One mesh per image. `stride` takes every n-th pixel, always including the last row and column.

    A triangle whose corners' depths differ by more than `edge_rtol` times the nearest, per pixel between
    them, would span an edge and is left out (0 keeps all); so are those with an invalid corner. `fov_degrees`
    as in view_to_point_cloud.
    """
    if stride < 1:
        raise ValueError(f"Expected a stride of at least 1, got {stride}. Correct it.")
    points = depth_to_points(view.depth, find_intrinsics(view, fov_degrees))
    height, width = view.depth.shape[-2:]
    rows, columns = _every(height, stride, points.device), _every(width, stride, points.device)
    pixels = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    limit = edge_rtol * stride if edge_rtol > 0 else float("inf")
    return tuple(_mesh(points[i], view.mask[i], pixels, limit) for i in range(len(view)))


def _every(count: int, stride: int, device: torch.device) -> Tensor:
    """0, stride, 2 stride ... and the last index."""
    indices = torch.arange(0, count, stride, device=device)
    return indices if indices[-1] == count - 1 else torch.cat([indices, indices.new_tensor([count - 1])])


def _mesh(points: Tensor, mask: Tensor, pixels: Tensor, limit: float) -> GridMesh:
    row, column = pixels[..., 0], pixels[..., 1]
    depth, valid = points[row, column, 2], mask[row, column]
    height, width = valid.shape
    halves = []
    for start in range(0, max(1, height - 1), BAND):  # whole tables of corners would take gigabytes
        band = slice(start, start + BAND + 1)
        halves.append([part.add_(start * width) for part in _faces(depth[band], valid[band], limit)])
    faces = torch.cat([part for parts in zip(*halves, strict=True) for part in parts])
    del halves
    used = torch.zeros(valid.numel(), dtype=torch.bool, device=points.device)
    used[faces.view(-1)] = True
    vertices = pixels.reshape(-1, 2)[used]
    size = points.new_tensor([points.shape[1], points.shape[0]])
    number = used.cumsum(0) - 1
    for part in faces.split(1 << 20):
        part.copy_(number[part])
    return GridMesh(
        points[vertices[:, 0], vertices[:, 1]],
        faces,
        (vertices.flip(-1) + 0.5) / size,
        vertices,
    )


def _faces(depth: Tensor, valid: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Two triangles of each cell of a band of rows (h, w), in cells' order, those that are kept: (m, 3)."""
    number = torch.arange(valid.numel(), device=depth.device).reshape(valid.shape)
    # clockwise from the upper left
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1]
    # the diagonal along which the depth changes less; between valid corners first
    jump = torch.where(valid, depth, torch.full_like(depth, torch.inf)).flatten()
    falling = (
        (jump[a] - jump[c]).abs().nan_to_num(torch.inf) <= (jump[b] - jump[d]).abs().nan_to_num(torch.inf)
    ).unsqueeze(-1)
    first = torch.where(falling, torch.stack([a, d, c], -1), torch.stack([a, d, b], -1))
    second = torch.where(falling, torch.stack([a, c, b], -1), torch.stack([b, d, c], -1))
    return _keep(first.reshape(-1, 3), depth, valid, limit), _keep(second.reshape(-1, 3), depth, valid, limit)


def _keep(faces: Tensor, depth: Tensor, valid: Tensor, limit: float) -> Tensor:
    """The triangles with three valid corners and no depth edge."""
    corners = depth.flatten()[faces]
    near, far = corners.amin(dim=1), corners.amax(dim=1)
    return faces[valid.flatten()[faces].all(dim=1) & (far - near <= limit * near)]
