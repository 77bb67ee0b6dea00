"""The four maps as channels of the intrinsic VAE in [-1, 1], and the inverse. Pure functions of tensors.

Training and nodes share this convention: +1 is near, right, up, toward the viewer, line; -1 the reverse.
Unknown maps and pixels are MISSING, 0, which is no mask color and no length of a unit normal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.geometry.view import is_valid, percentile
from ..vae import MISSING
from .segmentation import GRID, decode_segments, encode_segments

LOW, HIGH = 2.0, 98.0  # percentiles of 1 / depth that map to -1 and +1
NEAR, FAR = 1.0, 10.0  # default depths of +1 and -1 when decoding
SHORT = 0.1  # minimum length of a decoded normal


def depth_ends(depth: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(near, far), each (b,): the depths of (b, 1, h, w) that map to +1 and -1; NaN without a valid pixel."""
    valid = _valid_depth(depth, mask)
    ends = []
    for image, known in zip(depth.float(), valid):
        disparity = 1 / image[known]
        ends.append(
            [
                percentile(disparity, percent) if len(disparity) else disparity.new_tensor(torch.nan)
                for percent in (HIGH, LOW)
            ]
        )
    near, far = torch.stack([torch.stack(pair) for pair in ends]).unbind(1)
    return 1 / near, 1 / far


def encode_depth(depth: Tensor, mask: Tensor | None = None, *, sky: Tensor | None = None) -> Tensor:
    """Depth (b, 1, h, w), any unit, larger = farther, to [-1, 1]: linear in 1 / depth, +1 near, -1 far.

    Values are clipped at the percentiles. `mask` (same shape, True = valid) and `sky` (same shape, True =
    infinitely far) are optional. NaN, infinite, zero and negative pixels and those outside the mask become
    MISSING, sky becomes -1. An image of constant depth becomes 0. Scale and shift of 1 / depth are lost;
    `depth_ends` returns them.
    """
    valid = _valid_depth(depth, mask)
    near, far = (end.view(-1, 1, 1, 1) for end in depth_ends(depth, mask))
    disparity = 1 / torch.where(valid, depth, 1.0).float()
    span = 1 / near - 1 / far
    code = torch.where(span > 0, (disparity - 1 / far) / span * 2 - 1, 0.0).clamp(-1, 1)
    code = torch.where(valid, code, MISSING)
    return code if sky is None else torch.where(sky & ~valid, -1.0, code)


def decode_depth(code: Tensor, *, near: float | Tensor = NEAR, far: float | Tensor = FAR) -> Tensor:
    """(b, 1, h, w) in [-1, 1] to depth, larger = farther: linear in 1 / depth, `near` at +1, `far` at -1.

    The code does not contain the two ends: pass those of `depth_ends`, each (b,), or any two for a depth that
    is correct up to scale and shift of 1 / depth. Codes are clamped to [-1, 1]; NaN stays NaN.
    """
    near, far = (
        torch.as_tensor(end, dtype=torch.float32, device=code.device).reshape(-1, 1, 1, 1)
        for end in (near, far)
    )
    if not bool(((near > 0) & (far >= near)).all()):
        raise ValueError(
            f"Expected 0 < near <= far, got near {float(near.min()):g} and far {float(far.max()):g}. "
            "Exchange or correct them."
        )
    return 1 / torch.lerp(1 / far, 1 / near, (code.float().clamp(-1, 1) + 1) / 2)


def encode_normals(normals: Tensor) -> Tensor:
    """Unit normals (b, 3, h, w), camera frame OpenCV (x right, y down, z forward), to [-1, 1].

    The axes are those of the usual normal map: x right, y up, z toward the viewer. A zero normal (unknown)
    stays zero, which is MISSING; NaN and infinite normals become zero.
    """
    return _turn(torch.where(normals.isfinite().all(dim=1, keepdim=True), normals.float(), MISSING))


def decode_normals(code: Tensor) -> Tensor:
    """The inverse of `encode_normals`, scaled to unit length; codes too short or not finite become 0."""
    normals = _turn(torch.where(code.isfinite().all(dim=1, keepdim=True), code.float(), MISSING))
    length = normals.norm(dim=1, keepdim=True)
    return torch.where(length > SHORT, normals / length.clamp_min(SHORT), 0.0)


def normals_from_image(image: Tensor, *, directx: bool = False) -> Tensor:
    """A normal map (b, h, w, 3) in [0, 1] to unit normals (b, 3, h, w), camera frame OpenCV.

    Green is up in OpenGL's style (Blender, ControlNet), down in DirectX's; red is right and blue toward the
    viewer in both. Black and mid gray are unknown.
    """
    code = image[..., :3].movedim(-1, 1).float() * 2 - 1
    black = (image[..., :3] < 1 / 255).all(dim=-1).unsqueeze(1)
    if directx:
        code = code * code.new_tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    return torch.where(black, 0.0, decode_normals(code))


def encode_segmentation(ids: Tensor, *, grid: int = GRID) -> tuple[Tensor, list[int]]:
    """Mask ids (b, h, w), 0 = none, to colors (b, 3, h, w) in [-1, 1]; per image, how many got no color."""
    colors, left_out = encode_segments(ids, grid=grid)
    return colors.movedim(-1, 1) * 2 - 1, left_out


def decode_segmentation(code: Tensor) -> tuple[Tensor, list[list[int]]]:
    """(b, 3, h, w) in [-1, 1] to ids (b, h, w), 0 = none, and the ids per image; see `decode_segments`."""
    return decode_segments((code.movedim(1, -1).float() + 1) / 2)


def encode_line(line: Tensor) -> Tensor:
    """Line art (b, 1, h, w) in [0, 1], 1 = line (white on black), to [-1, 1]; non-finite becomes MISSING."""
    return torch.where(line.isfinite(), line.float().clamp(0, 1) * 2 - 1, MISSING)


def decode_line(code: Tensor) -> Tensor:
    """The inverse of `encode_line`."""
    return ((code.float() + 1) / 2).clamp(0, 1)


def _valid_depth(depth: Tensor, mask: Tensor | None) -> Tensor:
    if depth.dim() != 4 or depth.shape[1] != 1 or (mask is not None and mask.shape != depth.shape):
        shapes = " with a mask ".join(str(tuple(x.shape)) for x in (depth, mask) if x is not None)
        raise ValueError(
            f"Expected depth (b, 1, h, w) and a mask of that shape, got {shapes}. Reshape them."
        )
    # a depth whose reciprocal overflows float32 is invalid
    valid = is_valid(depth) & depth.float().reciprocal().isfinite()
    return valid if mask is None else valid & mask


def _turn(normals: Tensor) -> Tensor:
    """Between OpenCV's axes and those of a normal map, in either direction."""
    return normals * normals.new_tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
