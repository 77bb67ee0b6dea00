"""The displacement between two images of one size in pixels, by block-wise registration.

Blocks of the image are registered one by one: a whole-pixel shift by cross-correlation, refined by
Gauss-Newton steps on the squared difference (Lucas and Kanade). Blocks without texture in two directions, and
those whose content changed, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.pictures import LUMA
from .buckets import Size
from .framing import FitMode, fit_images, plan_framing, unfit_images

BLOCK = 48  # pixels of a block's side, less in small images
MOST = 200  # blocks of one image
FARTHEST = 12  # largest shift in pixels that is searched
STEPS = 5
SEAM = 2  # pixels between a block and the edited region
TEXTURE = 2e-5  # smallest eigenvalue of a block's mean structure tensor, of values in [0, 1] per pixel
ALIKE = 0.6  # correlation of a block with its counterpart, below which its content counts as changed


@dataclass(frozen=True)
class Registration:
    """The shifts of an image's blocks; `blocks` is 0 where nothing could be measured."""

    mean_px: float  # length of the shift, mean of the blocks; NaN without any
    worst_px: float
    shift: tuple[float, float]  # mean (right, down) in pixels
    blocks: int

    def describe(self) -> str:
        """One-line summary."""
        if not self.blocks:
            return "Alignment not measured: no unedited part has texture."
        worst = f"{self.worst_px:.3f} px worst of {self.blocks} blocks"
        return f"Alignment error: {self.mean_px:.3f} px mean, {worst}."


def measure_alignment(before: Tensor, after: Tensor, edited: Tensor | None = None) -> Registration:
    """Shifts of `after` against `before`, both (h, w, 3); `edited` (h, w) bool is left out."""
    if before.shape != after.shape:
        sizes = " and ".join(f"{image.shape[1]} x {image.shape[0]}" for image in (before, after))
        raise ValueError(
            f"Expected two images of one size, got {sizes} (width x height). Restore the edited image first."
        )
    first, second = (image[..., :3].to(torch.float32) @ torch.tensor(LUMA) for image in (before, after))
    side = min(BLOCK, *(length // 2 - 1 for length in first.shape))
    corners = _choose_blocks(first, edited, side) if side >= 8 else []
    if not len(corners):
        return Registration(float("nan"), float("nan"), (0.0, 0.0), 0)
    fixed = _sample(first, corners.to(torch.float32), side)
    shifts = _coarse_shifts(first, second, corners, side)
    for _ in range(STEPS):
        shifts = shifts + _refine(fixed, _sample(second, corners + shifts - 1, side + 2))
    moved = _sample(second, corners + shifts, side)
    kept = (_correlation(fixed, moved) > ALIKE) & (shifts.norm(dim=-1) < FARTHEST)
    lengths = shifts.norm(dim=-1)[kept]
    if not len(lengths):
        return Registration(float("nan"), float("nan"), (0.0, 0.0), 0)
    down, right = shifts[kept].mean(dim=0).tolist()
    return Registration(float(lengths.mean()), float(lengths.max()), (right, down), len(lengths))


def measure_framing(sizes: Iterable[Size], mode: FitMode = "pad") -> list[Registration]:
    """The alignment of a textured image of each size, (height, width), after a fit to its bucket and back."""
    found = []
    for height, width in sizes:
        framing = plan_framing(height, width, mode)
        image = _texture(height, width)
        left, top, right, bottom = framing.taken
        back = unfit_images(fit_images(image, framing), framing)
        found.append(measure_alignment(image[0, top:bottom, left:right], back[0]))
    return found


def _texture(height: int, width: int) -> Tensor:
    """(1, h, w, 3): noise of several scales, the finest of which survives the buckets' smallest scale."""
    generator = torch.Generator().manual_seed(height * 10007 + width)
    longest, total = max(height, width), torch.zeros(1, 1, height, width)
    for cells in (longest // 64, longest // 24, longest // 12):
        rows, columns = max(2, cells * height // longest), max(2, cells * width // longest)
        noise = torch.rand(1, 1, rows, columns, generator=generator)
        total += F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
    total = (total - total.min()) / (total.max() - total.min())
    return total.movedim(1, -1).expand(1, height, width, 3).contiguous()


def _choose_blocks(image: Tensor, edited: Tensor | None, side: int) -> Tensor:
    """(n, 2) corners (top, left) of textured, unedited blocks with room around them for the search."""
    height, width = image.shape
    rim = min(FARTHEST, (min(height, width) - side) // 2)
    tops = torch.arange(rim, height - side - rim + 1, side)
    lefts = torch.arange(rim, width - side - rim + 1, side)
    corners = torch.cartesian_prod(tops, lefts)
    if edited is not None and len(corners):
        around = _sample(edited.to(torch.float32), (corners - SEAM).to(torch.float32), side + 2 * SEAM)
        corners = corners[around.amax(dim=(1, 2)) == 0]
    if len(corners) > 4 * MOST:
        corners = corners[:: -(-len(corners) // (4 * MOST))]
    if not len(corners):
        return corners
    across, down = _gradients(_sample(image, corners.to(torch.float32), side))
    texture = _smallest_eigenvalue(across, down)
    good = corners[texture > TEXTURE]
    return good[:: max(1, -(-len(good) // MOST))]


def _gradients(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences (right, down) of (n, s, s), (n, s - 2, s - 2)."""
    return (
        (blocks[:, 1:-1, 2:] - blocks[:, 1:-1, :-2]) / 2,
        (blocks[:, 2:, 1:-1] - blocks[:, :-2, 1:-1]) / 2,
    )


def _smallest_eigenvalue(across: Tensor, down: Tensor) -> Tensor:
    xx, yy, xy = ((a * b).mean(dim=(1, 2)) for a, b in ((across, across), (down, down), (across, down)))
    return (xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy**2).sqrt()


def _coarse_shifts(first: Tensor, second: Tensor, corners: Tensor, side: int) -> Tensor:
    """(n, 2) whole-pixel shifts (down, right) with the largest normalized cross-correlation."""
    wide = side + 2 * FARTHEST
    fixed = _sample(first, corners.to(torch.float32), side)
    fixed = fixed - fixed.mean(dim=(1, 2), keepdim=True)
    searched = _sample(second, (corners - FARTHEST).to(torch.float32), wide)
    searched = searched - searched.mean(dim=(1, 2), keepdim=True)
    size, reach = (wide, wide), 2 * FARTHEST + 1
    product = torch.fft.rfft2(searched, size) * torch.fft.rfft2(fixed, size).conj()
    products = torch.fft.irfft2(product, size)[:, :reach, :reach]
    mean = F.avg_pool2d(searched[:, None], side, 1)[:, 0]
    variance = F.avg_pool2d(searched[:, None] ** 2, side, 1)[:, 0] - mean**2
    best = (products / variance.clamp(min=1e-8).sqrt()).flatten(1).argmax(dim=1)
    return torch.stack([best // reach, best % reach], dim=-1).to(torch.float32) - FARTHEST


def _refine(fixed: Tensor, moved: Tensor) -> Tensor:
    """One Gauss-Newton step (n, 2) (down, right); `moved` has one more pixel on each side than `fixed`."""
    across, down = _gradients(moved)
    rest = fixed - moved[:, 1:-1, 1:-1]
    rest = rest - rest.mean(dim=(1, 2), keepdim=True)
    xx, yy, xy = ((a * b).sum(dim=(1, 2)) for a, b in ((across, across), (down, down), (across, down)))
    x, y = ((a * rest).sum(dim=(1, 2)) for a in (across, down))
    determinant = (xx * yy - xy**2).clamp(min=1e-9)
    step = torch.stack([(xx * y - xy * x) / determinant, (yy * x - xy * y) / determinant], dim=-1)
    return step.clamp(-1, 1)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of (n, s, s) pairs."""
    a, b = (x - x.mean(dim=(1, 2), keepdim=True) for x in (a, b))
    return (a * b).sum(dim=(1, 2)) / ((a**2).sum(dim=(1, 2)) * (b**2).sum(dim=(1, 2))).sqrt().clamp(min=1e-9)


def _sample(image: Tensor, corners: Tensor, side: int) -> Tensor:
    """(n, side, side) blocks of (h, w) from their corners (top, left), cubic (Keys, -1/2) between pixels.

    torch's own cubic interpolation (-3/4) does not reproduce a linear ramp, which would bias the shift.
    """
    whole = corners.floor()
    part = corners - whole
    reach = torch.arange(-1, side + 2)
    rows, columns = (
        (whole[:, axis, None].long() + reach).clamp(0, image.shape[axis] - 1) for axis in (0, 1)
    )
    blocks = image[rows[:, :, None], columns[:, None, :]]
    down, across = _cubic_weights(part[:, 0]), _cubic_weights(part[:, 1])
    blocks = sum(down[:, tap, None, None] * blocks[:, tap : tap + side] for tap in range(4))
    return sum(across[:, tap, None, None] * blocks[:, :, tap : tap + side] for tap in range(4))


def _cubic_weights(t: Tensor) -> Tensor:
    """(n, 4) weights of the pixels at -1, 0, 1 and 2 for a position t in [0, 1) after pixel 0."""
    square, cube = t**2, t**3
    weights = [2 * square - cube - t, 2 + 3 * cube - 5 * square, t + 4 * square - 3 * cube, cube - square]
    return torch.stack(weights, dim=-1) / 2
