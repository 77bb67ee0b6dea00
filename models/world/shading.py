"""Shading of ray hits: light and surface patterns. Linear light; sRGB only in `encode_srgb`.

Vectors are (b, 3, n), as in solids.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .scene import FAR_METRES, Scene
from .solids import Hit, World, is_blocked

_GAMMA = 2.2


def encode_srgb(linear: Tensor) -> Tensor:
    """Linear light to display values in [0, 1], with a soft shoulder that preserves the color of
    highlights."""
    shoulder = 0.8
    over = (linear - shoulder).clamp_min(0)
    compressed = torch.where(
        linear > shoulder,
        shoulder + (1 - shoulder) * (1 - torch.exp(-over / (1 - shoulder))),
        linear.clamp_min(0),
    )
    return compressed.clamp_min(1e-6) ** (1 / _GAMMA)


def shade(
    world: World,
    hit: Hit,
    origins: Tensor,
    directions: Tensor,
    light_offset: tuple[float, float],
    *,
    pixel: Tensor,
) -> Tensor:
    """Linear color (b, 3, n) of each hit.

    `pixel` (b,) is a pixel's width at unit depth: finer patterns fade to their mean.
    """
    view = _unit(directions)
    to_light = _to_light(world, hit.point, light_offset)
    light_dir = _unit(to_light)
    albedo, shiny = _albedo(world, hit, view, pixel)
    facing = _dot(hit.normal, light_dir).clamp_min(0)
    lit = facing * ~is_blocked(world, hit.point + 4e-3 * hit.normal, to_light) * _falloff(world, to_light)
    color, ambient = _light_table(world)
    open_sky = 0.72 + 0.28 * hit.normal[:, 1]
    soft = ambient[:, None] * open_sky * _openness(world, hit)
    out = albedo * (soft[:, None] + 0.78 * lit[:, None] * color[..., None])
    return _haze(world, hit, view, _polish(world, hit, view, light_dir, (out, shiny, lit)))


def _polish(
    world: World, hit: Hit, view: Tensor, light_dir: Tensor, surface: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Add highlight and reflection to the rays that hit a shiny material."""
    out, shiny, lit = surface
    scene, ray = torch.nonzero(shiny, as_tuple=True)
    normal, eye, light = hit.normal[scene, :, ray], view[scene, :, ray], light_dir[scene, :, ray]
    gloss = (normal * F.normalize(light - eye, dim=-1)).sum(-1).clamp_min(0) ** 48 * lit[scene, ray].gt(0)
    along = (eye * normal).sum(-1, keepdim=True)
    fresnel = 0.25 + 0.75 * (1 + along).clamp(0, 1) ** 3
    out[scene, :, ray] += 0.55 * gloss[:, None] + 0.16 * fresnel * _environment(
        world, scene, eye - 2 * along * normal
    )
    return out


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def _unit(vector: Tensor) -> Tensor:
    # torch's normalize is 80 times slower over a short, strided axis
    return vector * torch.rsqrt(_dot(vector, vector))[:, None]


def _light_table(world: World) -> tuple[Tensor, Tensor]:
    device = world.center.device
    color = torch.tensor([scene.light.color for scene in world.scenes], device=device)
    return color, torch.tensor([scene.light.ambient for scene in world.scenes], device=device)


def _to_light(world: World, point: Tensor, offset: tuple[float, float]) -> Tensor:
    """Vectors (b, 3, n) from points to the light.

    The sun is 60 metres away; its disc is as wide as the lamp's seen from 4 metres.
    """
    rows = []
    for scene in world.scenes:
        x, y, z = scene.light.position
        scale = 60.0 if scene.light.directional else 1.0
        spread = scale / 4 if scene.light.directional else 1.0
        rows.append((x * scale + offset[0] * spread, y * scale, z * scale + offset[1] * spread))
    position = torch.tensor(rows, device=point.device)[..., None]
    directional = torch.tensor([scene.light.directional for scene in world.scenes], device=point.device)[
        :, None, None
    ]
    return torch.where(directional, position.expand_as(point), position - point)


def _falloff(world: World, to_light: Tensor) -> Tensor:
    directional = torch.tensor([scene.light.directional for scene in world.scenes], device=to_light.device)[
        :, None
    ]
    distance2 = _dot(to_light, to_light)
    return torch.where(directional, torch.ones_like(distance2), 20.0 / (distance2 + 11.0))


def _environment(world: World, scene: Tensor, direction: Tensor) -> Tensor:
    """Environment color (m, 3) along `direction` (m, 3): the sky's gradient, or a room's walls."""
    low, high = _sky_table(world)
    return torch.lerp(low[scene], high[scene], (direction[:, 1:2] * 0.5 + 0.5).clamp(0, 1))


def _sky_table(world: World) -> tuple[Tensor, Tensor]:
    """(horizon, zenith) in linear light, (b, 3) each."""

    def pair(scene: Scene):
        around = scene.surroundings
        return (around.wall_color,) * 2 if around.indoors else (around.sky[1], around.sky[0])

    table = torch.tensor([pair(scene) for scene in world.scenes], device=world.center.device) ** _GAMMA
    return table[:, 0], table[:, 1]


def _haze(world: World, hit: Hit, view: Tensor, color: Tensor) -> Tensor:
    """Outdoors, fade the ground into the horizon up to FAR_METRES, and replace what is beyond by the sky."""
    low, high = (tone[..., None] for tone in _sky_table(world))
    sky = low + (high - low) * ((view[:, 1:2] * 1.6).clamp(0, 1) ** 0.7)
    weight = ((hit.distance - 9.0) / (FAR_METRES - 9.0)).clamp(0, 1) ** 1.5
    weight = weight * (~world.indoors[:, None] & (hit.object < 0))
    color = color + (low - color) * weight[:, None]
    return torch.where((hit.distance >= FAR_METRES)[:, None], sky, color)


def _openness(world: World, hit: Hit) -> Tensor:
    """Ambient occlusion (b, n) in (0, 1] by nearby solids (each as a ball) and room corners."""
    open_share = torch.ones_like(hit.distance)
    for k in range(world.shape.shape[1]):
        present = (world.shape[:, k] >= 0)[:, None] & (hit.object != k)
        toward = world.center[:, k, :, None] - hit.point
        distance2 = _dot(toward, toward).clamp_min(1e-4)
        radius2 = (world.extents[:, k, 0] * world.extents[:, k, 1])[:, None]
        facing = _dot(toward, hit.normal).clamp_min(0) / distance2.sqrt()
        open_share = open_share * (1 - 0.75 * (facing * radius2 / distance2).clamp(0, 1) * present)
    # An object's own foot: the ground occludes its lower half.
    height = hit.point[:, 1].clamp_min(0)
    foot = torch.where(hit.object >= 0, 0.62 + 0.38 * (height / 0.45).clamp(0, 1), torch.ones_like(height))
    return open_share * foot * _corners(world, hit)


def _corners(world: World, hit: Hit) -> Tensor:
    low, high = world.room[:, :3, None], world.room[:, 3:, None]
    gap = (
        torch.minimum(hit.point - low, high - hit.point)
        .masked_fill(hit.normal.abs() > 0.9, math.inf)
        .clamp_min(0)
    )
    shade = 1 - 0.34 * torch.exp(-gap / 0.5)
    share = shade.prod(1)
    return torch.where((hit.object < 0) & world.indoors[:, None], share, torch.ones_like(share))


def _albedo(world: World, hit: Hit, view: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """albedo (b, 3, n), and shiny (b, n) in {0, 1}."""
    albedo, shiny = torch.empty_like(hit.point), torch.zeros_like(hit.distance)
    of, ray = torch.nonzero(hit.object >= 0, as_tuple=True)
    # A pixel's footprint on a surface grows with depth and with the slant of the view.
    slant = _dot(hit.normal, view).abs().clamp_min(0.05)
    footprint = hit.distance.clamp_max(100.0) * pixel[:, None] / slant
    for i, scene in enumerate(world.scenes):
        albedo[i] = _surroundings(scene, hit.point[i], hit.normal[i], footprint[i])
    albedo[of, :, ray] = world.albedo[of, hit.object[of, ray]]
    shiny[of, ray] = world.shiny[of, hit.object[of, ray]].to(shiny.dtype)
    return albedo, shiny


def _surroundings(scene: Scene, point: Tensor, normal: Tensor, footprint: Tensor) -> Tensor:
    """Linear albedo (3, n) of floor, walls and ceiling at points (3, n) with normals (3, n)."""
    around = scene.surroundings
    yaw = math.radians(around.floor_yaw)
    u = math.cos(yaw) * point[0] - math.sin(yaw) * point[2]
    v = math.sin(yaw) * point[0] + math.cos(yaw) * point[2]
    first, second = (
        torch.tensor(color, device=point.device)[:, None] ** _GAMMA for color in around.floor_colors
    )
    share = _FLOORS[around.floor](u, v, footprint)
    color = first + (second - first) * share
    if not around.indoors:
        return color
    wall = torch.tensor(around.wall_color, device=point.device)[:, None] ** _GAMMA
    sides = torch.nonzero(normal[1].abs() < 0.5).squeeze(1)
    spot = point[:, sides]
    along = torch.where(normal[0, sides].abs() > 0.5, spot[2], spot[0])
    color[:, sides] = wall * _wall_tone(around.wall, along, spot[1], footprint[sides])
    return torch.where(normal[1] < -0.5, wall * 0.5 + 0.45, color)


def _fade(pattern: Tensor, mean: float, footprint: Tensor, cell: float) -> Tensor:
    return torch.lerp(pattern, torch.full_like(pattern, mean), ((footprint / cell - 0.35) / 0.5).clamp(0, 1))


def _noise(u: Tensor, v: Tensor) -> Tensor:
    """Smooth value noise in [0, 1] with unit cells."""
    iu, iv = u.floor(), v.floor()
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)

    def lattice(a: Tensor, b: Tensor) -> Tensor:
        return (torch.sin(a * 12.9898 + b * 78.233) * 437.585).frac().abs()

    top = torch.lerp(lattice(iu, iv), lattice(iu + 1, iv), fu)
    return torch.lerp(top, torch.lerp(lattice(iu, iv + 1), lattice(iu + 1, iv + 1), fu), fv)


def _grain(u: Tensor, v: Tensor, footprint: Tensor, cell: float) -> Tensor:
    coarse = _noise(u / cell, v / cell)
    fine = _fade(_noise(u / cell * 3.7 + 11.3, v / cell * 3.7), 0.5, footprint, cell / 3.7)
    return _fade(0.6 * coarse + 0.4 * fine, 0.5, footprint, cell)


def _checkered(u, v, footprint):
    return _fade((((u / 0.8).floor() + (v / 0.8).floor()) % 2), 0.5, footprint, 0.8)


def _tiled(u, v, footprint):
    cell, joint = 0.9, 0.05
    fu, fv = u / cell - (u / cell).floor(), v / cell - (v / cell).floor()
    return _fade(((fu < joint) | (fv < joint)).float(), 2 * joint, footprint, 0.22)


def _wooden(u, v, footprint):
    width, length = 0.42, 2.6
    row = (u / width).floor()
    along = v / length + (torch.sin(row * 91.7) * 43.7).frac().abs()
    tone = (torch.sin(row * 12.9898 + along.floor() * 78.233) * 437.585).frac().abs()
    seam = ((u / width - row) < 0.05) | ((along - along.floor()) < 0.012)
    veins = _fade(_noise(u * 22, v * 1.3), 0.5, footprint, 0.06)
    return _fade((0.75 * tone + 0.3 * veins - 0.1), 0.42, footprint, 0.42) + _fade(
        seam.float() * 0.8, 0.05, footprint, 0.1
    )


_FLOORS = {
    "checkered": _checkered,
    "tiled": _tiled,
    "wooden": _wooden,
    "plain": lambda u, v, footprint: _grain(u, v, footprint, 0.9),
    "grass": lambda u, v, footprint: _grain(u, v, footprint, 0.32),
    "sand": lambda u, v, footprint: _grain(u + 0.25 * torch.sin(v * 1.7), v * 2.4, footprint, 0.7),
    "paved": lambda u, v, footprint: (
        0.55 * _tiled(u * 0.75, v * 0.75, footprint) * 1.6 + 0.25 * _grain(u, v, footprint, 0.5)
    ),
}


def _wall_tone(kind: str, along: Tensor, height: Tensor, footprint: Tensor) -> Tensor:
    """Brightness factor of a wall, n: its pattern and a darker skirting board."""
    if kind == "striped":
        tone = 1 - 0.10 * _fade(((along / 0.55).floor() % 2), 0.5, footprint, 0.55)
    elif kind == "brick":
        row = (height / 0.26).floor()
        column = along / 0.62 + 0.5 * (row % 2)
        joint = ((height / 0.26 - row) < 0.10) | ((column - column.floor()) < 0.045)
        brick = (torch.sin(row * 12.9898 + column.floor() * 78.233) * 437.585).frac().abs()
        tone = 1 - _fade(0.18 * joint.float() + 0.10 * brick, 0.08, footprint, 0.12)
    else:
        tone = torch.ones_like(height)
    return torch.where(height < 0.14, torch.full_like(tone, 0.55), tone)
