"""The four maps as the intrinsic VAE takes them and gives them: each in [-1, 1], and back. Pure functions of tensors.

Training and nodes both go through here, so that one convention holds: +1 is near, right, up, towards the viewer, line; -1 the reverse.
A map or a pixel that is not known reads MISSING, 0, which is no colour of a mask and no length of a normal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.geometry.view import is_valid, percentile
from ..vae import MISSING
from .segmentation import PLACES, decode_segments, encode_segments

LOW, HIGH = 2.0, 98.0  # percentiles of 1 / depth that -1 and +1 stand for
NEAR, FAR = 1.0, 10.0  # depths that stand for them on the way back unless the caller knows better
SHORT = 0.1  # a decoded normal shorter than this points nowhere


def depth_ends(depth: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(near, far), each (b,): the depths of (b, 1, h, w) that +1 and -1 stand for; NaN for a picture without a valid pixel."""
    valid = _valid_depth(depth, mask)
    ends = []
    for picture, known in zip(depth.float(), valid):
        disparity = 1 / picture[known]
        ends.append(
            [
                percentile(disparity, percent) if len(disparity) else disparity.new_tensor(torch.nan)
                for percent in (HIGH, LOW)
            ]
        )
    near, far = torch.stack([torch.stack(pair) for pair in ends]).unbind(1)
    return 1 / near, 1 / far


def encode_depth(depth: Tensor, mask: Tensor | None = None, *, sky: Tensor | None = None) -> Tensor:
    """Depth (b, 1, h, w), any unit, larger = farther, to [-1, 1]: linear in 1 / depth, +1 near, -1 far, clipped at the percentiles.

    `mask` (same shape, True = valid) and `sky` (same shape, True = infinitely far) are optional. NaN, infinite, zero and negative pixels
    and those outside the mask become MISSING, sky -1. A picture of constant depth becomes 0. Scale and shift of 1 / depth are lost;
    `depth_ends` tells them.
    """
    valid = _valid_depth(depth, mask)
    near, far = (end.view(-1, 1, 1, 1) for end in depth_ends(depth, mask))
    disparity = 1 / torch.where(valid, depth, 1.0).float()
    span = 1 / near - 1 / far
    code = torch.where(span > 0, (disparity - 1 / far) / span * 2 - 1, 0.0).clamp(-1, 1)
    code = torch.where(valid, code, MISSING)
    return code if sky is None else torch.where(sky & ~valid, -1.0, code)


def decode_depth(code: Tensor, *, near: float | Tensor = NEAR, far: float | Tensor = FAR) -> Tensor:
    """(b, 1, h, w) in [-1, 1] to depth, larger = farther, from `near` at +1 to `far` at -1 in equal steps of 1 / depth.

    The code does not know either end: give those of `depth_ends`, each (b,), or any two for a depth that is right up to scale and shift of
    1 / depth. Codes outside [-1, 1] are taken for the ends; NaN stays NaN.
    """
    near, far = (
        torch.as_tensor(end, dtype=torch.float32, device=code.device).reshape(-1, 1, 1, 1)
        for end in (near, far)
    )
    if not bool(((near > 0) & (far >= near)).all()):
        raise ValueError(
            f"The depths {float(near.min()):g} (near) and {float(far.max()):g} (far) arrived: wanted 0 < "
            "near <= far."
        )
    return 1 / torch.lerp(1 / far, 1 / near, (code.float().clamp(-1, 1) + 1) / 2)


def encode_normals(normals: Tensor) -> Tensor:
    """Unit normals (b, 3, h, w), camera frame OpenCV (x right, y down, z forward), to [-1, 1]: x right, y up, z towards the viewer.

    So they look like the usual normal map. A zero normal, one that is not known, stays zero, which is MISSING; so does one that is no
    number.
    """
    return _turn(torch.where(normals.isfinite().all(dim=1, keepdim=True), normals.float(), MISSING))


def decode_normals(code: Tensor) -> Tensor:
    """The reverse of `encode_normals`, brought to unit length; codes too short to point anywhere, or no numbers, become zero."""
    normals = _turn(torch.where(code.isfinite().all(dim=1, keepdim=True), code.float(), MISSING))
    length = normals.norm(dim=1, keepdim=True)
    return torch.where(length > SHORT, normals / length.clamp_min(SHORT), 0.0)


def normals_from_image(image: Tensor, *, directx: bool = False) -> Tensor:
    """A normal map (b, h, w, 3) in [0, 1] to unit normals (b, 3, h, w), camera frame OpenCV; black and mid grey are not known.

    Up is green in OpenGL's style (Blender, ControlNet), down in DirectX's. Right is red and towards the viewer blue in both.
    """
    code = image[..., :3].movedim(-1, 1).float() * 2 - 1
    black = (image[..., :3] < 1 / 255).all(dim=-1).unsqueeze(1)
    if directx:
        code = code * code.new_tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    return torch.where(black, 0.0, decode_normals(code))


def encode_segmentation(ids: Tensor, *, places: int = PLACES) -> tuple[Tensor, list[int]]:
    """Masks numbered in (b, h, w), 0 being none, to colours (b, 3, h, w) in [-1, 1], and how many masks of each found no colour."""
    colours, left_out = encode_segments(ids, places=places)
    return colours.movedim(-1, 1) * 2 - 1, left_out


def decode_segmentation(code: Tensor) -> tuple[Tensor, list[list[int]]]:
    """(b, 3, h, w) in [-1, 1] to ids (b, h, w), 0 being none, and the ids of each picture; see `decode_segments`."""
    return decode_segments((code.movedim(1, -1).float() + 1) / 2)


def encode_line(line: Tensor) -> Tensor:
    """Line art (b, 1, h, w) in [0, 1], 1 on the line and 0 on the paper (white on black), to [-1, 1]; what is no number is MISSING."""
    return torch.where(line.isfinite(), line.float().clamp(0, 1) * 2 - 1, MISSING)


def decode_line(code: Tensor) -> Tensor:
    """The reverse of `encode_line`."""
    return ((code.float() + 1) / 2).clamp(0, 1)


def _valid_depth(depth: Tensor, mask: Tensor | None) -> Tensor:
    if depth.dim() != 4 or depth.shape[1] != 1 or (mask is not None and mask.shape != depth.shape):
        shapes = " with a mask ".join(str(tuple(part.shape)) for part in (depth, mask) if part is not None)
        raise ValueError(f"A depth {shapes} arrived, wanted (batch, 1, h, w) and a mask of the same shape.")
    valid = (
        is_valid(depth) & depth.float().reciprocal().isfinite()
    )  # nearer than float32 can say as 1 / depth is no depth
    return valid if mask is None else valid & mask


def _turn(normals: Tensor) -> Tensor:
    """Between OpenCV's axes and those of a normal map, either way."""
    return normals * normals.new_tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
