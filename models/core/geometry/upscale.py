"""A depth map brought to the size of a larger image of the same scene, guided by that image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .camera import scale_intrinsics
from .view import View

# Joint bilateral upsampling (Kopf et al., 2007) by factors of at most 2, which costs a third of one filter of
# the whole factor and errs less; the constants were chosen on the world's train split, see docs/log.md.
KERNEL = 9  # pixels of the larger map
SPACE_SIGMA = 3.0  # pixels of the larger map
COLOR_SIGMA = 0.15  # of an image in [0, 1]
EDGE = 0.06  # range of log depth among neighbors from which on a pixel lies at an edge
_STRIP = 2**18  # pixels filtered at once: kornia unfolds every pixel's neighborhood
_ASPECT_SLACK = 0.02


def upscale_view(view: View, image: Tensor, *, each: Callable[[Sequence], Iterable] = iter) -> View:
    """The view at the size of `image`, (b, H, W, 3) or (1, H, W, 3) in [0, 1], which becomes its image.

    At edges of the depth each pixel takes the depths around it, weighted by how near they are and how much
    their pixels look like its own, so that outlines follow the image's; elsewhere log depth is interpolated
    bilinearly. Validity and sky are decided in the same way. Nothing is filled in, and the unit stays. The
    images are worked on one by one, in a loop over `each` of them.
    ValueError for an image that is smaller, or of another aspect ratio.
    """
    guide = _check_image(view, image)
    size = tuple(guide.shape[1:3])
    channels = rearrange(guide, "b h w c -> b c h w")
    steps = list(steps_to(tuple(view.depth.shape[1:]), size))
    pairs = list(zip(_as_planes(view).split(1), channels.split(1), strict=True))
    planes = torch.cat([_upscale_planes(planes, guide, steps) for planes, guide in each(pairs)])
    log, valid, sky = planes.unbind(1)
    depth = torch.where(valid >= 0.5, log.exp(), 0.0)
    others = {
        "sky": None if view.sky is None else (sky >= 0.5) & (valid < 0.5),
        "normals": _resize(view.normals, size),
        "confidence": _resize(view.confidence, size),
        "intrinsics": None
        if view.intrinsics is None
        else scale_intrinsics(view.intrinsics, tuple(view.depth.shape[1:]), size),
        "world_to_cam": view.world_to_cam,
    }
    return View.from_depth(depth, units=view.units, image=guide, **others)


def steps_to(small: tuple[int, int], large: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Sizes (h, w) from the first after `small` to `large`, each at most twice the one before."""
    count = max(1, math.ceil(math.log2(max(large[0] / small[0], large[1] / small[1])) - 1e-9))
    for number in range(1, count + 1):
        yield tuple(
            round(low * (high / low) ** (number / count)) for low, high in zip(small, large, strict=True)
        )


def _check_image(view: View, image: Tensor) -> Tensor:
    if image.ndim != 4 or image.shape[3] != 3 or len(image) not in (1, len(view)):
        raise ValueError(
            f"Expected an image (1, h, w, 3) or ({len(view)}, h, w, 3) for {len(view)} depth maps, got "
            f"{tuple(image.shape)}. Give one image, or one for each depth map."
        )
    (h, w), (height, width) = view.depth.shape[1:], image.shape[1:3]
    if height < h or width < w:
        raise ValueError(
            f"Expected an image of at least the depth map's {w} x {h} pixels, got {width} x {height}. Give "
            "the larger image."
        )
    if abs(math.log(width / height * h / w)) > max(_ASPECT_SLACK, 1 / h + 1 / w):
        raise ValueError(
            f"Expected an image of the depth map's aspect ratio, {w} x {h}, got {width} x {height}. Crop "
            "the image to what the depth map shows."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError("Expected a finite image, got NaN or infinity in it. Check its source.")
    return image.to(view.depth).clamp(0, 1).expand(len(view), -1, -1, -1)


def _as_planes(view: View) -> Tensor:
    """(b, 3, h, w): log depth, 0 where invalid; valid and sky as
    0 or 1."""
    valid = view.mask.float()
    log = torch.where(view.mask, view.depth.clamp(min=torch.finfo(torch.float32).tiny).log(), 0.0)
    sky = torch.zeros_like(valid) if view.sky is None else view.sky.float()
    return torch.stack((log, valid, sky), dim=1)


def _upscale_planes(planes: Tensor, guide: Tensor, steps: Sequence[tuple[int, int]]) -> Tensor:
    for step in steps:
        planes = _double(planes, F.interpolate(guide, size=step, mode="area"))
    return planes


def _double(planes: Tensor, guide: Tensor) -> Tensor:
    """Planes (b, 3, h, w) at the size of the guide (b, 3, H, W), at most twice theirs."""
    size, (log, valid) = guide.shape[-2:], (planes[:, :1], planes[:, 1:2])
    weighted = torch.cat((log * valid, planes[:, 1:]), dim=1)
    smooth = F.interpolate(weighted, size=size, mode="bilinear")
    near = F.interpolate(weighted, size=size, mode="nearest")
    edges = F.interpolate(_find_edges(planes).float(), size=size) > 0
    mixed = torch.where(edges, _filter(near, guide), smooth) if bool(edges.any()) else smooth
    log, valid, sky = mixed.split(1, dim=1)
    return torch.cat((log / valid.clamp(min=1e-6), (valid >= 0.5).float(), (sky >= 0.5).float()), dim=1)


def _find_edges(planes: Tensor) -> Tensor:
    """(b, 1, h, w): pixels whose neighbors differ in depth, validity or sky."""
    log, valid = planes[:, :1], planes[:, 1:2] > 0
    farthest = F.max_pool2d(log.where(valid, -math.inf), 3, 1, 1)
    nearest = -F.max_pool2d((-log).where(valid, -math.inf), 3, 1, 1)
    states = planes[:, 1:]
    mixed = F.max_pool2d(states, 3, 1, 1) + F.max_pool2d(-states, 3, 1, 1)
    return (farthest - nearest > EDGE) | (mixed > 0).any(dim=1, keepdim=True)


def _filter(planes: Tensor, guide: Tensor) -> Tensor:
    """The joint bilateral filter, in strips of rows: its result does not depend on them."""
    from kornia.filters import joint_bilateral_blur

    margin, height, width = KERNEL // 2, *guide.shape[-2:]
    rows = max(1, _STRIP // (width * len(guide)))
    strips = []
    for start in range(0, height, rows):
        low, high = max(0, start - margin), min(height, start + rows + margin)
        sigma = (SPACE_SIGMA, SPACE_SIGMA)
        strip = joint_bilateral_blur(
            planes[..., low:high, :], guide[..., low:high, :], KERNEL, COLOR_SIGMA, sigma, "replicate"
        )
        strips.append(strip[..., start - low : min(height, start + rows) - low, :])
    return torch.cat(strips, dim=-2)


def _resize(plane: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """(b, h, w) or (b, h, w, 3), bilinearly."""
    if plane is None:
        return None
    if plane.ndim == 3:
        return F.interpolate(plane[:, None], size=size, mode="bilinear")[:, 0]
    resized = F.interpolate(rearrange(plane, "b h w c -> b c h w"), size=size, mode="bilinear")
    return F.normalize(rearrange(resized, "b c h w -> b h w c"), dim=-1)
