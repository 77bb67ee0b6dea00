"""One image and its depth as a dense colored relief, its surfaces separated at depth edges: the input of the
orbit.

For display only: depth edges are moved to color edges, noise within a surface is smoothed, and several points
represent each pixel; the exports do not use it. Internally, depth is disparity ``q`` = 1 / depth: planes are
linear in it, and an invalid pixel is 0, infinitely far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.camera import pixel_centers, unproject
from ..geometry.view import percentile

_CURTAIN_DIMMING = 0.66


def sharpen_disparity(q: Tensor, image: Tensor) -> Tensor:
    """Disparity (h, w) with soft edges made hard, edges moved onto those of the image (h, w, 3), and noise
    reduced.
    """
    q = _harden(q)
    q = _follow_colors(q, image)
    return _smooth(q)


@dataclass(frozen=True)
class Relief:
    """Points in camera space with color and opacity, colors premultiplied.

    Pixels without depth, such as sky, are points of opacity 0: transparent, but not holes. Curtains connect
    the near and the far side of every edge, in the far side's color, dimmed: they fill what a camera motion
    disoccludes.
    """

    points: Tensor  # (n, 3)
    colors: Tensor  # (n, 4)
    curtain_points: Tensor  # (m, 3)
    curtain_colors: Tensor  # (m, 4)


def make_relief(
    q: Tensor, image: Tensor, factor: int, intrinsics: Tensor, *, backdrop: float, curtain_density: float
) -> Relief:
    """``factor`` squared points for each pixel of ``q`` (h, w), at least 2 x 2; invalid ones at the disparity
    ``backdrop``.

    Curtains get ``curtain_density`` points for a disparity of 1.
    """
    height, width = q.shape
    across, down = _breaks(q, image, 1), _breaks(q, image, 0)
    image = _unmix(image, q, across, down)
    size = (height * factor, width * factor)
    fine_q = F.interpolate(q[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    colors = (
        F.interpolate(image.movedim(-1, 0)[None], size, mode="bicubic", align_corners=False)[0]
        .movedim(0, -1)
        .clamp(0, 1)
    )
    rows, columns = _near_breaks(across, down, factor)
    if len(rows):
        fine_q[rows, columns], colors[rows, columns] = _take_sides(q, image, rows, columns, factor)
    solid = (fine_q > 0).to(fine_q)[..., None]
    fine_q = torch.where(fine_q > 0, fine_q, torch.full_like(fine_q, backdrop))
    colors = torch.cat([colors * solid, solid], -1)
    rays = unproject(pixel_centers(*size) / factor, torch.ones(size), intrinsics)
    curtain = _hang_curtains(fine_q, colors, rays, _steep(q, 0.02), curtain_density)
    return Relief((rays / fine_q[..., None]).reshape(-1, 3), colors.reshape(-1, 4), *curtain)


def _hang_curtains(
    q: Tensor, colors: Tensor, rays: Tensor, step: float, density: float
) -> tuple[Tensor, Tensor]:
    """Points (m, 3) and colors (m, 4) between neighbors of the refined grid that are more than ``step``
    apart.
    """
    points, paints = [], []
    for axis in (0, 1):
        count = q.shape[axis] - 1
        one, two = q.narrow(axis, 0, count), q.narrow(axis, 1, count)
        place = ((one - two).abs() > step).nonzero(as_tuple=True)
        near, far = torch.maximum(one, two)[place], torch.minimum(one, two)[place]
        far_side = torch.where(
            (one < two)[place][:, None],
            colors.narrow(axis, 0, count)[place],
            colors.narrow(axis, 1, count)[place],
        )
        counts = ((near - far) * density).ceil().long() + 1
        owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
        first = (counts.cumsum(0) - counts)[owner]
        along = (torch.arange(len(owner)) - first + 0.5) / counts[owner]
        disparity = near[owner] + (far - near)[owner] * along
        points.append(rays.narrow(axis, 0, count)[place][owner] / disparity[:, None])
        paints.append((far_side * torch.tensor([*[_CURTAIN_DIMMING] * 3, 1.0]))[owner])
    return torch.cat(points), torch.cat(paints)


def _extremes(q: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Largest and smallest value of each size x size window."""
    grid = q[None, None]
    return F.max_pool2d(grid, size, 1, size // 2)[0, 0], -F.max_pool2d(-grid, size, 1, size // 2)[0, 0]


def _steep(q: Tensor, share: float) -> float:
    """A disparity step that is large for the whole scene."""
    return share * float(percentile(q[q > 0], 95))


def _harden(q: Tensor, rounds: int = 2) -> Tensor:
    """Move each pixel halfway up a soft depth edge to the nearer of both sides, so that none floats between
    surfaces.
    """
    steep = _steep(q, 0.08)
    for _ in range(rounds):
        high, low = _extremes(q, 3)
        between = torch.minimum(high - q, q - low) > 0.2 * (high - low)
        side = torch.where(high - q < q - low, high, low)
        q = torch.where((high - low > steep) & between & (q > 0) & (side > 0), side, q)
    return q


def _windows(values: Tensor, size: int) -> Tensor:
    """Every size x size window of (c, h, w) as (c, size * size, h, w), padded with 0."""
    channels, height, width = values.shape
    return F.unfold(values[None], size, padding=size // 2).reshape(channels, size * size, height, width)


def _follow_colors(q: Tensor, image: Tensor, size: int = 7) -> Tensor:
    """Beside a depth edge, assign a pixel to a side by a vote of the surrounding pixels of similar color."""
    high, low = _extremes(q, 5)
    beside = ((high - low > _steep(q, 0.08)) & (q > 0) & (low > 0)).nonzero(as_tuple=True)
    if len(beside[0]) == 0:
        return q
    # (4, 49, n)
    around = _windows(torch.cat([image.movedim(-1, 0), q[None]]), size)[:, :, beside[0], beside[1]]
    other = around[3]
    unlike = (around[:3] - image[beside].T[:, None]).square().sum(0)
    offsets = torch.arange(size) - size // 2
    distance = (offsets[:, None] ** 2 + offsets[None] ** 2).reshape(-1, 1)
    weight = torch.exp(-unlike / (2 * 0.06**2) - distance / (2 * 2.0**2)) * (other > 0)
    near = other >= (high + low)[beside] / 2
    vote, share = (weight * near).sum(0), weight.sum(0)
    side = near == (vote > share / 2)
    value = (weight * side * other).sum(0) / (weight * side).sum(0).clamp_min(1e-12)
    # a pixel that stays on its side keeps its own value: only those that change sides need a new one
    changes = (q[beside] >= (high + low)[beside] / 2) != (vote > share / 2)
    moved = q.clone()
    moved[beside] = torch.where(changes & (value > 0), value, q[beside])
    return moved


def _smooth(q: Tensor) -> Tensor:
    """Smooth noise of a percent or two; a larger step is a shape and is kept."""
    around = _windows(q[None], 5)[0]
    weight = torch.exp(-(((around - q) / (0.03 * q.clamp_min(1e-12))) ** 2)) * (around > 0)
    return torch.where(q > 0, (weight * around).sum(0) / weight.sum(0).clamp_min(1e-12), q)


def _breaks(q: Tensor, image: Tensor, axis: int) -> Tensor:
    """True between neighbors along an axis (one fewer than pixels) that lie on different surfaces.

    A step counts if it is large for the whole scene, or large locally while the slope of neither side
    predicts it: a floor at a grazing angle steps far from row to row, but evenly. Where the color changes as
    well, a smaller step suffices.
    """
    large = _steep(q, 0.05)
    recolors = image.diff(dim=axis).abs().amax(-1).movedim(axis, -1) > 0.12
    q = q.movedim(axis, -1)
    first, second = q[..., :-1], q[..., 1:]
    step, nearest = second - first, torch.maximum(first, second)
    endless = torch.full_like(step[..., :1], float("inf"))
    before, after = torch.cat([endless, step[..., :-1]], -1), torch.cat([step[..., 1:], endless], -1)
    bend = torch.minimum((step - before).abs(), (step - after).abs())
    limit = torch.where(recolors, 0.03, 0.06) * nearest
    broken = (step.abs() > large) | ((bend > limit) & (step.abs() > limit))
    return (broken | ((first > 0) != (second > 0))).movedim(-1, axis)


def _beside_breaks(across: Tensor, down: Tensor) -> Tensor:
    """Pixels (h, w) with a break on any of their four sides."""
    beside = torch.zeros(across.shape[0], down.shape[1], dtype=torch.bool)
    beside[:, 1:] |= across
    beside[:, :-1] |= across
    beside[1:] |= down
    beside[:-1] |= down
    return beside


def _unmix(image: Tensor, q: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Pixels beside a break mix both colors: replace them by the mean of unmixed pixels of their own surface
    nearby, if there are any.
    """
    mixed = _beside_breaks(across, down)
    around = _windows(torch.cat([image.movedim(-1, 0), q[None], (~mixed).to(q)[None]]), 5)
    weight = around[4] * ((around[3] - q).abs() < 0.06 * q)
    total = weight.sum(0)
    mean = (around[:3] * weight).sum(1) / total.clamp_min(1)
    return torch.where((mixed & (total > 0))[..., None], mean.movedim(0, -1), image)


def _near_breaks(across: Tensor, down: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Refined rows and columns close enough to a break that both surfaces reach them."""
    band = F.max_pool2d(_beside_breaks(across, down).float()[None, None], 3, 1, 1)
    return (F.interpolate(band, scale_factor=factor, mode="nearest")[0, 0] > 0).nonzero(as_tuple=True)


def _spline(place: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The 4 pixels around positions (n,) on an axis and their cubic B-spline weights, both (4, n).

    Smooth and never negative.
    """
    before = place.floor()
    t = place - before
    weights = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return (before.long() + torch.arange(-1, 3)[:, None]).clamp(0, count - 1), weights


def _take_sides(
    q: Tensor, image: Tensor, rows: Tensor, columns: Tensor, factor: int
) -> tuple[Tensor, Tensor]:
    """Disparity (n,) and color (n, 3) of refined pixels beside a break, each from one surface only.

    The surrounding surfaces vote with spline weights, so that the outline between them is smooth at subpixel
    scale. Two rounds: a third surface, often the sky behind both, must not be mixed into the second.
    """
    y, weight_y = _spline((rows + 0.5) / factor - 0.5, q.shape[0])
    x, weight_x = _spline((columns + 0.5) / factor - 0.5, q.shape[1])
    index = (y[:, None] * q.shape[1] + x[None]).flatten(0, 1)  # (16, n)
    weight = (weight_y[:, None] * weight_x[None]).flatten(0, 1)
    around = q.reshape(-1)[index]
    for _ in range(2):
        high = torch.where(weight > 0, around, torch.zeros_like(around)).amax(0)
        low = torch.where(weight > 0, around, torch.full_like(around, float("inf"))).amin(0)
        near = around >= (high + low) / 2
        side = near == ((weight * near).sum(0) >= weight.sum(0) / 2)
        apart = high - low > 0.04 * high
        weight = torch.where(side | ~apart, weight, torch.zeros_like(weight))
    weight = weight / weight.sum(0)
    colors = (image.reshape(-1, 3)[index] * weight[..., None]).sum(0)
    return (around * weight).sum(0), colors
