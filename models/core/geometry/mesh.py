"""Depth maps to grid meshes: one vertex per valid pixel, no triangle across a depth edge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .camera import unproject
from .points import find_intrinsics
from .view import View

BAND = 32  # rows: the tables of a band stay in the processor's cache, those of an image take gigabytes


@dataclass(frozen=True)
class GridMesh:
    """The surface of one image, OpenCV camera frame.

    Triangles run counter-clockwise seen from the camera, in glTF axes too.
    """

    vertices: Tensor  # (n, 3)
    faces: Tensor  # (m, 3) int32
    uvs: Tensor  # (n, 2): the pixel's center in widths and heights, the origin in the upper left corner
    pixels: Tensor  # (n, 2) int32: row, column

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
    intrinsics = find_intrinsics(view, fov_degrees)
    height, width = view.depth.shape[-2:]
    rows, columns = _every(height, stride, view.depth.device), _every(width, stride, view.depth.device)
    limit = edge_rtol * stride if edge_rtol > 0 else float("inf")
    return tuple(
        _mesh(view.depth[i], view.mask[i], intrinsics[i : i + 1], rows, columns, limit)
        for i in range(len(view))
    )


def _every(count: int, stride: int, device: torch.device) -> Tensor:
    """0, stride, 2 stride ... and the last index."""
    indices = torch.arange(0, count, stride, device=device)
    return indices if indices[-1] == count - 1 else torch.cat([indices, indices.new_tensor([count - 1])])


def _mesh(
    depth: Tensor, valid: Tensor, intrinsics: Tensor, rows: Tensor, columns: Tensor, limit: float
) -> GridMesh:
    """The mesh of one depth map (h, w) over the pixels at these rows and columns."""
    size = depth.new_tensor([depth.shape[1], depth.shape[0]])
    if len(rows) < depth.shape[0] or len(columns) < depth.shape[1]:
        depth, valid = depth[rows][:, columns], valid[rows][:, columns]
    faces, used = _triangles(depth, valid, limit)
    total = int(used.sum())
    vertices, uvs = depth.new_empty(total, 3), depth.new_empty(total, 2)
    pixels = torch.empty(total, 2, dtype=torch.int32, device=depth.device)
    start = 0
    for top in range(0, len(rows), BAND):
        band = slice(top, top + BAND)
        x, y = torch.meshgrid(columns, rows[band], indexing="xy")
        points = unproject(torch.stack([x, y], -1).unsqueeze(0) + 0.5, depth[None, band], intrinsics)[0]
        kept = used[band]
        end = start + int(kept.sum())
        vertices[start:end] = points[kept]
        pixels[start:end] = torch.stack([y[kept], x[kept]], -1)
        uvs[start:end] = (pixels[start:end].flip(-1) + 0.5) / size
        start = end
    return GridMesh(vertices, faces, uvs, pixels)


def _triangles(depth: Tensor, valid: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """The triangles (m, 3) int32 of a grid (h, w), of each cell the first, then of each the second; and
    True (h, w) at the vertices that they use, which they number in the order of the pixels.
    """
    bands = [slice(top, top + BAND + 1) for top in range(0, max(1, len(depth) - 1), BAND)]
    cells = [_split_cells(depth[band], valid[band], limit) for band in bands]
    used = torch.zeros_like(valid)
    for band, (falling, first, second) in zip(bands, cells, strict=True):
        a, b, c, d = _corners(used[band])
        a |= first | (second & falling)
        b |= second | (first & ~falling)
        c |= second | (first & falling)
        d |= first | (second & ~falling)
    number = used.reshape(-1).cumsum(0, dtype=torch.int32).sub_(1).reshape(used.shape)
    counts = [[int(kept.sum()) for kept in cell[1:]] for cell in cells]
    faces = number.new_empty(sum(map(sum, counts)), 3)
    starts = [0, sum(first for first, _ in counts)]
    for band, (falling, *halves), count in zip(bands, cells, counts, strict=True):
        a, b, c, d = _corners(number[band])
        by_falling = [torch.where(falling, *pair) for pair in ((c, b), (a, b), (c, d), (b, c))]
        corners = (a, d, by_falling[0]), by_falling[1:]
        for half, (kept, points) in enumerate(zip(halves, corners, strict=True)):
            end = starts[half] + count[half]
            faces[starts[half] : end] = torch.stack(tuple(points), -1)[kept]
            starts[half] = end
    return faces, used


def _corners(grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A grid (h, w) at each cell's corners (h - 1, w - 1), clockwise from the upper left."""
    return grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]


def _split_cells(depth: Tensor, valid: Tensor, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bool maps (h - 1, w - 1) of a band of rows: the diagonal falls to the right; the first triangle, at the
    left, is kept, having three valid corners and no depth edge; the second is.
    """
    # the diagonal along which the depth changes less; between valid corners first
    a, b, c, d = _corners(torch.where(valid, depth, torch.full_like(depth, torch.inf)))
    falling = (a - c).abs().nan_to_num(torch.inf) <= (b - d).abs().nan_to_num(torch.inf)
    a, b, c, d = _corners(depth)
    a_valid, b_valid, c_valid, d_valid = _corners(valid)

    def is_kept(x, y, z, good):
        near = torch.minimum(torch.minimum(x, y), z)
        far = torch.maximum(torch.maximum(x, y), z)
        return good & (far - near <= limit * near)

    first = is_kept(
        a, d, torch.where(falling, c, b), a_valid & d_valid & torch.where(falling, c_valid, b_valid)
    )
    second = is_kept(
        b, c, torch.where(falling, a, d), b_valid & c_valid & torch.where(falling, a_valid, d_valid)
    )
    return falling, first, second
