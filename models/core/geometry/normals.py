"""Normals from depth, and normal maps as images. OpenCV camera frame: towards the camera, z < 0."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .camera import pixel_centers, unproject
from .points import find_intrinsics
from .view import View, is_valid

NormalStyle = Literal["opengl", "directx"]


def normals_from_depth(
    depth: Tensor, intrinsics: Tensor, mask: Tensor | None = None, *, edge_rtol: float = 0.04
) -> Tensor:
    """Unit normals (b, h, w, 3) of z-depth (b, h, w) seen through (b, 3, 3); zero where two tangents cannot
    be computed.

    Differences of neighboring points are the tangents. Where the depth's second difference at a pixel exceeds
    ``edge_rtol`` of the depth, an edge runs there, and only the flatter side is used, so that no surface is
    spanned across the edge. Exact on planes, second order elsewhere; kornia's depth_to_normals uses Sobel
    only and rounds edges off.
    """
    mask = is_valid(depth) if mask is None else mask & is_valid(depth)
    depth = torch.where(mask, depth, torch.ones_like(depth))
    height, width = depth.shape[-2:]
    points = unproject(
        pixel_centers(height, width, device=depth.device).expand(*depth.shape, 2), depth, intrinsics
    )
    along_x, has_x = _difference(points, mask, 2, edge_rtol)
    along_y, has_y = _difference(points, mask, 1, edge_rtol)
    # y times x, not x times y: with y down this one points back at the camera
    normals = torch.linalg.cross(along_y, along_x)
    length = normals.norm(dim=-1, keepdim=True)
    measured = (mask & has_x & has_y).unsqueeze(-1) & (length > 0)
    return torch.where(
        measured, normals / length.clamp_min(torch.finfo(length.dtype).tiny), torch.zeros_like(normals)
    )


def view_with_normals(view: View, *, fov_degrees: float | None = None, edge_rtol: float = 0.04) -> View:
    """The View with normals computed from its depth, through its own camera or one of ``fov_degrees``.

    ``edge_rtol`` 0 ignores edges.
    """
    normals = normals_from_depth(
        view.depth, find_intrinsics(view, fov_degrees), view.mask, edge_rtol=edge_rtol or math.inf
    )
    return replace(view, normals=normals)


def _difference(points: Tensor, mask: Tensor, axis: int, edge_rtol: float) -> tuple[Tensor, Tensor]:
    """The tangent (b, h, w, 3) of the surface along one axis, central where smooth, and where (b, h, w) it
    exists.
    """
    step, both = (
        points.diff(dim=axis),
        mask.narrow(axis, 1, mask.shape[axis] - 1) & mask.narrow(axis, 0, mask.shape[axis] - 1),
    )
    none, no = torch.zeros_like(points.narrow(axis, 0, 1)), torch.zeros_like(mask.narrow(axis, 0, 1))
    ahead, has_ahead = torch.cat([step, none], axis), torch.cat([both, no], axis)
    behind, has_behind = torch.cat([none, step], axis), torch.cat([no, both], axis)
    bend = (ahead[..., 2] - behind[..., 2]).abs()
    smooth = has_ahead & has_behind & (bend <= edge_rtol * points[..., 2])
    flatter_ahead = ahead[..., 2].abs() <= behind[..., 2].abs()
    take_ahead = has_ahead & (flatter_ahead | ~has_behind)
    one_sided = torch.where(take_ahead.unsqueeze(-1), ahead, behind)
    return torch.where(smooth.unsqueeze(-1), (ahead + behind) / 2, one_sided), has_ahead | has_behind


def normals_to_image(normals: Tensor, style: NormalStyle = "opengl") -> Tensor:
    """Normals (..., 3) as the usual image (..., 3) in [0, 1]: right is red, towards the viewer is blue.

    Up is green in "opengl" (Blender, ControlNet), down is green in "directx". A zero normal is black, which
    no unit normal is.
    """
    if style not in get_args(NormalStyle):
        raise ValueError(
            f"Expected a normal map style of {get_args(NormalStyle)}, got {style!r}. Choose one of these."
        )
    green = -1.0 if style == "opengl" else 1.0
    colors = 0.5 + 0.5 * normals * torch.tensor(
        [1.0, green, -1.0], dtype=normals.dtype, device=normals.device
    )
    known = (normals != 0).any(dim=-1, keepdim=True)
    return torch.where(known, colors.clamp(0, 1), torch.zeros_like(colors))
