"""Camera motion between an image and its edit, by direct alignment of the colors of the static background.

The depth of the image before gives each pixel a point; the motion is that under which the points meet their
own colors in the image after. A grid of orbits gives the initial hypotheses; robust Levenberg-Marquardt over
rotation, translation and focal length refines them from coarse to fine. No feature detector, no weights.

Letters: m hypotheses, n points, c channels. Camera frames are OpenCV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..geometry.camera import pixel_centers, scale_intrinsics, unproject
from ..geometry.resize import resize_antialiased
from ..geometry.view import percentile

_YAWS = tuple(range(-60, 61, 6))  # of the grid of orbits, degrees; beyond, the images share too little
_PITCHES = tuple(range(-30, 31, 6))
_DISTANCES = (0.7, 1.0, 1.4)  # ratio of the distance after to that before
_FOCAL_RATIOS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0)
_MOVES, _ZOOMS_ONLY = (0, 1, 2, 3, 4, 5), (3, 4, 5, 6)  # parameters: translation, rotation, log focal ratio
_PIVOTS = (0.6, 0.85, 1.1)  # distance of the orbit's center in median depths
_SIZES = (20, 40, 80, 128)  # longer side of the images, pixels
_KEPT = (32, 12, 3, 1)  # hypotheses refined at each size
_STEPS = (8, 8, 8, 8)
_INLIER = (0.15, 0.13, 0.11, 0.1)  # largest color difference of an inlier, at each size
_BETTER, _LEAST_IN_VIEW = 20.0, 0.25  # percentile of the costs of a grid; least fraction in view
_DETAIL = 0.08  # weight of the locally normalized brightness beside the colors
_MOST_GAIN = 1.12  # largest ratio of the colors after and before
_SAME = 0.03  # largest entry of the difference of two poses that count as one hypothesis
_LEAST_POINTS = 64
_SKY_DEPTH = 50.0  # in median depths: without visible parallax
_ZOOM_MARGIN = 0.85  # cost of a zoom relative to that of a move, below which the zoom is chosen


@dataclass(frozen=True)
class CameraMotion:
    """The motion of the camera from before to after, in the unit of the depth."""

    pose: Tensor  # (4, 4), points of the camera before to the camera after
    focal_ratio: float  # above 1: a longer focal length after
    agreement: float  # fraction of the points in view whose colors agree
    in_view: float  # fraction of the points that the image after shows
    improvement: float  # relative to the cost of a static camera: 1 explains all, 0 nothing

    @property
    def is_found(self) -> bool:
        """Whether enough of the scene is in view and agrees for the motion to be reliable."""
        return self.agreement >= 0.35 and self.in_view >= 0.2


@dataclass(frozen=True)
class _Pair:
    """Points of the image before with their colors, and the image after, at one size."""

    points: Tensor  # (n, 3)
    colors: Tensor  # (n, c): red, green, blue, and normalized brightness
    after: Tensor  # (3 c, h, w): colors and their derivatives by x and y
    intrinsics: Tensor  # (3, 3)
    inlier: float  # largest color difference of an inlier
    unseen: float = 0.3  # cost of a point out of view


def estimate_motion(
    before: Tensor,
    after: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    *,
    static: Tensor,
    sky: Tensor | None = None,
) -> CameraMotion:
    """Motion of the camera from images (h, w, 3), the depth before (h, w), intrinsics (3, 3), the mask
    `static` (h, w) of pixels with a depth that belong to nothing edited, and the sky's mask (h, w).

    The camera either moves at a constant focal length, or rotates and zooms without translation: whichever
    explains the image after better. With so little parallax both at once are ambiguous.
    """
    if int(static.sum()) < _LEAST_POINTS:
        raise ValueError(
            f"Expected at least {_LEAST_POINTS} background pixels with a depth, got {int(static.sum())}. "
            "Check the depth, and that the object's mask does not cover the image."
        )
    unit = depth[static].median()
    known = static if sky is None else static | sky
    scaled = torch.where(static, depth / unit, torch.full_like(depth, _SKY_DEPTH))
    pairs = [_scale_pair(before, after, scaled, intrinsics, static=known, size=size) for size in _SIZES]
    orbits = _orbits(before.device)
    unseen = [_with_unseen(pair, *orbits).unseen for pair in (pairs[0], _thin_out(pairs[1]))]
    pairs = [replace(pair, unseen=unseen[min(index, 1)]) for index, pair in enumerate(pairs)]
    moves, zooms = (
        _fit(pairs, *orbits, _MOVES),
        _fit(pairs, *_zooms(before.device), _ZOOMS_ONLY),
    )
    poses, focal, _ = zooms if float(zooms[2]) < _ZOOM_MARGIN * float(moves[2]) else moves
    agreement, in_view = _agreement(pairs[-1], poses, focal)
    cost = float(_costs(pairs[-1], poses, focal)[0])
    still = float(_costs(pairs[-1], torch.eye(4, device=before.device)[None], torch.zeros_like(focal))[0])
    pose = poses[0].clone()
    pose[:3, 3] *= unit
    return CameraMotion(pose, float(focal[0].exp()), agreement, in_view, 1 - cost / max(still, 1e-6))


def _fit(pairs: list[_Pair], poses: Tensor, focal: Tensor, free: tuple[int, ...]):
    """The best of some hypotheses with its cost, from coarse to fine; `free` are the parameters that vary."""
    # small images have wider basins of convergence, larger ones separate more minima: start from both
    starts = []
    for pair in (pairs[0], _thin_out(pairs[1])):
        best = _choose(_costs(pair, poses, focal), poses, _KEPT[0])
        starts.append(_refine(pair, poses[best], focal[best], _STEPS[0], free=free))
    poses, focal = (torch.cat([start[index] for start in starts]) for index in (0, 1))
    for pair, kept, steps in zip(pairs[1:], _KEPT[1:], _STEPS[1:], strict=True):
        best = _choose(_costs(pair, poses, focal), poses, kept)
        poses, focal, costs = _refine(pair, poses[best], focal[best], steps, free=free)
    return poses[:1], focal[:1], costs[0]


def _thin_out(pair: _Pair) -> _Pair:
    """The pair with every fourth point."""
    return replace(pair, points=pair.points[::4], colors=pair.colors[::4])


def _choose(costs: Tensor, poses: Tensor, kept: int) -> Tensor:
    """Indices of the cheapest hypotheses that differ from each other; several converge to one minimum."""
    chosen: list[int] = []
    for index in costs.argsort().tolist():
        if all(float((poses[index] - poses[other]).abs().max()) > _SAME for other in chosen):
            chosen.append(index)
        if len(chosen) == kept:
            break
    return torch.tensor(chosen, device=poses.device)


def _orbits(device: torch.device) -> tuple[Tensor, Tensor]:
    """Poses (m, 4, 4) of a grid of orbits and logs (m,) of their focal ratios, 0; the first is no motion."""
    axes = [torch.tensor(values, dtype=torch.float32) for values in (_YAWS, _PITCHES, _PIVOTS, _DISTANCES)]
    orbits = orbit_pose(*torch.cartesian_prod(*axes).unbind(-1))
    poses = torch.cat([torch.eye(4)[None], orbits]).to(device)
    return poses, torch.zeros(len(poses), device=device)


def _zooms(device: torch.device) -> tuple[Tensor, Tensor]:
    """No motion (m, 4, 4) with several logs (m,) of focal ratios."""
    focal = torch.tensor([math.log(ratio) for ratio in _FOCAL_RATIOS], device=device)
    return torch.eye(4, device=device).repeat(len(focal), 1, 1), focal


def orbit_pose(
    yaw_degrees: Tensor,
    pitch_degrees: Tensor,
    pivot: Tensor,
    distance_ratio: Tensor,
    *,
    up: Tensor | None = None,
) -> Tensor:
    """Poses (..., 4, 4) from the camera before to the one after an orbit about the point `pivot` ahead.

    Yaw is to the viewer's right, pitch is up; the distance to the point is multiplied by the ratio.
    """
    up = torch.tensor([0.0, -1.0, 0.0]) if up is None else up.cpu().float()
    forward = torch.tensor([0.0, 0.0, 1.0])
    right = F.normalize(torch.linalg.cross(forward, up), dim=0)
    turn = rotation_about(up, torch.deg2rad(yaw_degrees)) @ rotation_about(
        right, -torch.deg2rad(pitch_degrees)
    )
    center = pivot[..., None] * forward
    pose = torch.eye(4).expand(*turn.shape[:-2], 4, 4).clone()
    pose[..., :3, :3] = turn.mT
    pose[..., :3, 3] = distance_ratio[..., None] * center - (turn.mT @ center[..., None])[..., 0]
    return pose


def rotation_about(axis: Tensor, radians: Tensor) -> Tensor:
    """Rotations (..., 3, 3) by angles (...) about a unit axis (3,), counterclockwise where it points at the
    viewer."""
    return torch.linalg.matrix_exp(radians[..., None, None] * _cross_matrix(axis))


def _cross_matrix(vector: Tensor) -> Tensor:
    """Matrices (..., 3, 3) of the cross product with vectors (..., 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def _scale_pair(before, after, depth, intrinsics, *, static, size: int) -> _Pair:
    """The pair with a longer side of `size` pixels, blurred accordingly."""
    height, width = depth.shape
    shrink = min(1.0, size / max(height, width))
    small = (max(8, round(height * shrink)), max(8, round(width * shrink)))
    images = (rearrange(image, "h w c -> 1 c h w") for image in (before, after))
    first, second = (_features(resize_antialiased(image, small)[0]) for image in images)
    nearest = {"size": small, "mode": "nearest-exact"}
    known = F.interpolate(static[None, None].float(), **nearest)[0, 0] > 0.5
    z = F.interpolate(depth[None, None], **nearest)[0, 0]
    matrix = scale_intrinsics(intrinsics, (height, width), small)
    points = unproject(pixel_centers(*small, device=depth.device), z, matrix)
    padded = F.pad(second[None], (1, 1, 1, 1), mode="replicate")[0]
    slope_x = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    slope_y = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    if size == _SIZES[-1]:  # half of the points, as on a chessboard, are enough there
        known = known & (torch.arange(small[0])[:, None] + torch.arange(small[1]) + 1).fmod(2).bool().to(
            known.device
        )
    colors = rearrange(first, "c h w -> h w c")[known]
    inlier = _INLIER[_SIZES.index(size)]
    return _Pair(points[known], colors, torch.cat([second, slope_x, slope_y]), matrix, inlier)


def _features(image: Tensor) -> Tensor:
    """Colors (3, h, w) and their brightness, normalized by its surroundings: (4, h, w)."""
    brightness = image.mean(0, keepdim=True)
    mean = _blur(brightness)
    deviation = (_blur(brightness.square()) - mean.square()).clamp_min(0).sqrt()
    return torch.cat([image, _DETAIL * (brightness - mean) / (deviation + 0.02)])


def _blur(image: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(image[None], (3, 3, 3, 3), mode="reflect"), 7, stride=1)[0]


def _sample(
    pair: _Pair, poses: Tensor, focal: Tensor, *, slopes: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """What the image after shows of the points: values (m, n, c), with slopes (m, n, 3 c), the points there
    (m, n, 3), and whether they are in view (m, n)."""
    moved = pair.points @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
    z = moved[..., 2].clamp_min(1e-3)
    ratio = focal.exp()[:, None]
    x = ratio * pair.intrinsics[0, 0] * moved[..., 0] / z + pair.intrinsics[0, 2]
    y = ratio * pair.intrinsics[1, 1] * moved[..., 1] / z + pair.intrinsics[1, 2]
    height, width = pair.after.shape[1:]
    inside = (moved[..., 2] > 0.05) & (x > 0) & (x < width) & (y > 0) & (y < height)
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], -1).clamp(-2, 2)
    # one image for all hypotheses: they are rows of one grid
    layers = pair.after if slopes else pair.after[: pair.colors.shape[-1]]
    values = F.grid_sample(layers[None], grid[None], align_corners=False, padding_mode="border")[0]
    return rearrange(values, "c m n -> m n c"), moved, inside


def _costs(pair: _Pair, poses: Tensor, focal: Tensor) -> Tensor:
    """Truncated cost (m,) of each hypothesis; a point out of view costs what one does under a wrong
    hypothesis, and a hypothesis with hardly any point in view loses."""
    seen, in_view = _seen_costs(pair, poses, focal)
    return seen + pair.unseen * (1 - in_view) + (_LEAST_IN_VIEW - in_view).clamp_min(0)


def _seen_costs(pair: _Pair, poses: Tensor, focal: Tensor) -> tuple[Tensor, Tensor]:
    """The part (m,) of the cost that points in view cause, and the fraction (m,) of the points in view."""
    costs, shares = [], []
    for some, lengths in zip(poses.split(64), focal.split(64), strict=True):
        values, _, inside = _sample(pair, some, lengths)
        values = values * _gains(pair, values, inside)
        squared = (values - pair.colors).square().sum(-1) / pair.inlier**2
        costs.append((squared.clamp_max(1) * inside).mean(-1))
        shares.append(inside.float().mean(-1))
    return torch.cat(costs), torch.cat(shares)


def _with_unseen(pair: _Pair, poses: Tensor, focal: Tensor) -> _Pair:
    """The pair with the cost of a point out of view: that of a point in view under the better ones of a
    grid of hypotheses, nearly all of which are wrong. Images with more contrast have a higher one."""
    seen, in_view = _seen_costs(pair, poses, focal)
    wrong = (seen / in_view.clamp_min(1e-6))[in_view > 0.5]
    return replace(pair, unseen=float(percentile(wrong, _BETTER))) if wrong.numel() else pair


def _gains(pair: _Pair, values: Tensor, inside: Tensor) -> Tensor:
    """Factor of each channel (m, 1, c) by which an edit made the agreeing colors darker or brighter."""
    squared = (values - pair.colors).square().sum(-1)
    weight = (inside / (1 + squared / pair.inlier**2).square())[..., None]
    gains = (weight * values * pair.colors).sum(1, keepdim=True)
    gains = gains / (weight * values.square()).sum(1, keepdim=True).clamp_min(1e-6)
    gains[..., 3:] = 1  # normalized brightness has no gain
    return gains.clamp(1 / _MOST_GAIN, _MOST_GAIN)


def _refine(pair: _Pair, poses: Tensor, focal: Tensor, steps: int, *, free: tuple[int, ...]):
    """Levenberg-Marquardt with robust weights for all hypotheses at once: poses, focal ratios and costs, the
    best first."""
    damping = torch.full((len(poses),), 1e-3, device=poses.device)
    cost, chosen = _costs(pair, poses, focal), torch.tensor(free, device=poses.device)
    for _ in range(steps):
        hessian, gradient = _normal_equations(pair, poses, focal)
        hessian, gradient = hessian[:, chosen[:, None], chosen], gradient[:, chosen]
        diagonal = torch.diagonal(hessian, dim1=-2, dim2=-1)
        damped = hessian + torch.diag_embed(damping[:, None] * diagonal + 1e-9)
        step = torch.zeros(len(poses), 7, device=poses.device)
        step[:, chosen] = -torch.linalg.solve(damped, gradient)
        step = step * (0.3 / step.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1)
        new_poses, new_focal = _apply_step(poses, step[:, :6]), focal + step[:, 6]
        new_cost = _costs(pair, new_poses, new_focal)
        better = new_cost < cost
        poses = torch.where(better[:, None, None], new_poses, poses)
        focal, cost = torch.where(better, new_focal, focal), torch.where(better, new_cost, cost)
        damping = torch.where(better, damping * 0.3, damping * 8).clamp(1e-6, 1e4)
    order = cost.argsort()
    return poses[order], focal[order], cost[order]


def _normal_equations(pair: _Pair, poses: Tensor, focal: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Newton's matrix (m, 7, 7) and gradient (m, 7): translation, rotation, log of the focal ratio."""
    values, moved, inside = _sample(pair, poses, focal, slopes=True)
    color, slope_x, slope_y = values.chunk(3, dim=-1)
    gains = _gains(pair, color, inside)
    color, slope_x, slope_y = color * gains, slope_x * gains, slope_y * gains
    residual = color - pair.colors
    weight = inside / (1 + residual.square().sum(-1) / pair.inlier**2).square()
    x, y, z = moved.unbind(-1)
    z = z.clamp_min(0.05)
    ratio = focal.exp()[:, None]
    fx, fy, zero = ratio * pair.intrinsics[0, 0], ratio * pair.intrinsics[1, 1], torch.zeros_like(x)
    by_x = [
        fx / z,
        zero,
        -fx * x / z**2,
        -fx * x * y / z**2,
        fx * (1 + (x / z) ** 2),
        -fx * y / z,
        fx * x / z,
    ]
    by_y = [zero, fy / z, -fy * y / z**2, -fy * (1 + (y / z) ** 2), fy * x * y / z**2, fy * x / z, fy * y / z]
    jacobian = slope_x[..., None] * torch.stack(by_x, -1)[:, :, None]
    jacobian = jacobian + slope_y[..., None] * torch.stack(by_y, -1)[:, :, None]
    weighted = weight[..., None, None] * jacobian
    hessian = torch.einsum("mnci,mncj->mij", weighted, jacobian) / len(pair.points)
    gradient = torch.einsum("mnci,mnc->mi", weighted, residual) / len(pair.points)
    return hessian, gradient


def _apply_step(poses: Tensor, step: Tensor) -> Tensor:
    """Poses (m, 4, 4) after a small rigid motion (m, 6)."""
    twist = torch.zeros_like(poses)
    twist[:, :3, :3] = _cross_matrix(step[:, 3:])
    twist[:, :3, 3] = step[:, :3]
    return torch.linalg.matrix_exp(twist) @ poses


def _agreement(pair: _Pair, poses: Tensor, focal: Tensor) -> tuple[float, float]:
    values, _, inside = _sample(pair, poses[:1], focal[:1])
    values = values * _gains(pair, values, inside)
    inliers = (values - pair.colors).norm(dim=-1) < pair.inlier
    in_view = float(inside.float().mean())
    return float((inliers & inside).sum() / inside.sum().clamp_min(1)), in_view
