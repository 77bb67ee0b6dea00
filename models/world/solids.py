"""Closed-form ray intersections with the four solids, the ground and the room.

Vectors are (b, 3, n), components before rays, so that every operation runs along contiguous rays.
Letters: b scenes, k solids (padded), n rays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .scene import COLORS, SHAPES, Scene

_EPSILON = 1e-3


@dataclass(frozen=True)
class World:
    """Scenes as padded tensors.

    shape (b, k): int64, index in SHAPES, -1 = none; center, extents, albedo (b, k, 3); yaw (b, k): radians;
    shiny (b, k): bool; room (b, 6); indoors (b,).
    """

    scenes: tuple[Scene, ...]
    shape: Tensor
    center: Tensor
    extents: Tensor
    yaw: Tensor
    albedo: Tensor
    shiny: Tensor
    room: Tensor  # low x, y, z, high x, y, z; infinite sides for open ground
    indoors: Tensor  # bool

    def pairs(self, kind: int) -> tuple[Tensor, Tensor]:
        return torch.nonzero(self.shape == kind, as_tuple=True)


@dataclass(frozen=True)
class Hit:
    """Nearest hits of rays.

    distance (b, n): along the ray, inf = none; object (b, n): index, -1 = surroundings; normal (b, 3, n):
    towards the viewer; point (b, 3, n).
    """

    distance: Tensor
    object: Tensor
    normal: Tensor
    point: Tensor


def pack(scenes: list[Scene], device) -> World:
    k = max(1, max(len(scene.objects) for scene in scenes))
    rows = [
        [_object_row(item) for item in scene.objects] + [_EMPTY_ROW] * (k - len(scene.objects))
        for scene in scenes
    ]
    table = torch.tensor(rows, dtype=torch.float32, device=device)
    rooms = torch.tensor([_room_row(scene) for scene in scenes], dtype=torch.float32, device=device)
    return World(
        tuple(scenes),
        table[..., 0].long(),
        table[..., 1:4],
        table[..., 4:7],
        table[..., 7],
        table[..., 8:11],
        table[..., 11] > 0.5,
        rooms,
        torch.tensor([scene.surroundings.indoors for scene in scenes], device=device),
    )


_EMPTY_ROW = [-1.0, 0, 0, 0, 1.0, 1.0, 1.0, 0, 0, 0, 0, 0]


def _object_row(item) -> list[float]:
    albedo = [channel**2.2 for channel in COLORS[item.color]]
    return [
        SHAPES.index(item.shape),
        *item.center,
        *item.extents,
        math.radians(item.yaw),
        *albedo,
        float(item.material == "shiny"),
    ]


def _room_row(scene: Scene) -> list[float]:
    if scene.surroundings.room is None:
        return [-math.inf, 0.0, -math.inf, math.inf, math.inf, math.inf]
    half, behind, front, height = scene.surroundings.room
    return [-half, 0.0, -behind, half, height, front]


def trace(world: World, origins: Tensor, directions: Tensor) -> Hit:
    """The nearest surface along each ray."""
    distance, surface_normal = _hit_room(world, origins, directions)
    winner = torch.full_like(distance, -1, dtype=torch.long)
    for kind in range(len(SHAPES)):
        scene, slot = world.pairs(kind)
        candidates = _hit_solids(world, kind, scene, slot, origins, directions)
        for b, k, candidate in zip(scene.tolist(), slot.tolist(), candidates, strict=True):
            nearer = candidate < distance[b]
            distance[b] = torch.where(nearer, candidate, distance[b])
            winner[b].masked_fill_(nearer, k)
    point = origins + distance.clamp_max(1e4)[:, None] * directions
    scene, ray = torch.nonzero(winner >= 0, as_tuple=True)
    surface_normal[scene, :, ray] = _solid_normals(world, scene, winner[scene, ray], point[scene, :, ray])
    return Hit(distance, winner, surface_normal, point)


def is_blocked(world: World, origins: Tensor, directions: Tensor) -> Tensor:
    """Shadow rays: whether a solid is between origin and origin + direction, (b, n) bool.

    Rooms cast no shadow.
    """
    shape = (directions.shape[0], directions.shape[2])
    blocked = torch.zeros(shape, dtype=torch.bool, device=directions.device)
    for kind in range(len(SHAPES)):
        scene, slot = world.pairs(kind)
        distances = _hit_solids(world, kind, scene, slot, origins, directions)
        for b, distance in zip(scene.tolist(), distances, strict=True):
            blocked[b] |= distance < 1.0
    return blocked


def _hit_solids(
    world: World, kind: int, scene: Tensor, slot: Tensor, origins: Tensor, directions: Tensor
) -> list[Tensor]:
    """Ray lengths (n,) for each object of one kind, inf for a miss.

    One object at a time, for the CPU's cache.
    """
    hits = []
    for b, k in zip(scene.tolist(), slot.tolist(), strict=True):
        turn = _to_local(world.yaw[b, k], world.extents[b, k])
        start = turn @ (origins[b] - world.center[b, k, :, None])
        hits.append(_INTERSECT[kind](start.unbind(0), (turn @ directions[b]).unbind(0)))
    return hits


def _to_local(yaw: Tensor, extents: Tensor) -> Tensor:
    """Matrices (..., 3, 3) to the frame where the solid has half size 1, from yaw (...) and extents (...,
    3)."""
    cos, sin, zero, one = torch.cos(yaw), torch.sin(yaw), torch.zeros_like(yaw), torch.ones_like(yaw)
    turn = torch.stack((cos, zero, -sin, zero, one, zero, sin, zero, cos), -1).reshape(*yaw.shape, 3, 3)
    return turn / extents[..., None]


def _first_positive(near: Tensor, far: Tensor, valid: Tensor) -> Tensor:
    length = torch.where(near > _EPSILON, near, far)
    return length.masked_fill(~valid | (length <= _EPSILON), math.inf)


def _hit_ball(start, along) -> Tensor:
    (ox, oy, oz), (dx, dy, dz) = start, along
    a = dx * dx + dy * dy + dz * dz
    half = ox * dx + oy * dy + oz * dz
    disc = half * half - a * (ox * ox + oy * oy + oz * oz - 1)
    root = disc.clamp_min(0).sqrt()
    return _first_positive((-half - root) / a, (-half + root) / a, disc > 0)


def _hit_box(start, along) -> Tensor:
    near, far = None, None
    for o, d in zip(start, along, strict=True):
        inverse = 1.0 / torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)
        middle, reach = -o * inverse, inverse.abs()
        low, high = middle - reach, middle + reach
        near, far = (low, high) if near is None else (torch.maximum(near, low), torch.minimum(far, high))
    return _first_positive(near, far, near < far)


def _hit_cylinder(start, along) -> Tensor:
    (ox, oy, oz), (dx, dy, dz) = start, along
    side_near, side_far = _quadric(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - 1)
    inverse = 1.0 / torch.where(dy.abs() < 1e-9, torch.full_like(dy, 1e-9), dy)
    middle, reach = -oy * inverse, inverse.abs()
    near, far = torch.maximum(side_near, middle - reach), torch.minimum(side_far, middle + reach)
    return _first_positive(near, far, near < far)


def _quadric(a: Tensor, half: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Both roots of a t^2 + 2 half t + c, an empty interval where there are none. a > 0."""
    disc = half * half - a * c
    root = disc.clamp_min(0).sqrt().masked_fill(disc <= 0, -math.inf)
    a = a.clamp_min(1e-12)
    return (-half - root) / a, (-half + root) / a


def _hit_cone(start, along) -> Tensor:
    """Apex at y = 1, base of radius 1 at y = -1: x^2 + z^2 = ((1 - y) / 2)^2."""
    (ox, oy, oz), (dx, dy, dz) = start, along
    a = dx * dx + dz * dz - dy * dy / 4
    half = ox * dx + oz * dz + dy * (1 - oy) / 4
    c = ox * ox + oz * oz - (1 - oy) * (1 - oy) / 4
    a = torch.where(a.abs() < 1e-9, torch.full_like(a, 1e-9), a)
    disc = half * half - a * c
    root = disc.clamp_min(0).sqrt()
    best = torch.full_like(a, math.inf)
    for length in ((-half - root) / a, (-half + root) / a):
        y = oy + length * dy
        valid = (disc > 0) & (length > _EPSILON) & (y > -1) & (y < 1)
        best = torch.where(valid & (length < best), length, best)
    base = (-1 - oy) / torch.where(dy.abs() < 1e-9, torch.full_like(dy, 1e-9), dy)
    x, z = ox + base * dx, oz + base * dz
    return torch.where((base > _EPSILON) & (x * x + z * z < 1) & (base < best), base, best)


_INTERSECT = (_hit_ball, _hit_box, _hit_cylinder, _hit_cone)


def _hit_room(world: World, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (b, n) to the room's walls or the ground, and the inward normals (b, 3, n) there."""
    low, high = world.room[:, :3, None], world.room[:, 3:, None]
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    exits = (torch.where(safe > 0, high, low) - origins) / safe
    distance = torch.minimum(torch.minimum(exits[:, 0], exits[:, 1]), exits[:, 2])
    return distance, -torch.sign(safe) * (exits == distance[:, None])


def _solid_normals(world: World, scene: Tensor, winner: Tensor, point: Tensor) -> Tensor:
    """Outward unit normals (m, 3) at points (m, 3) of the solids `winner` (m,) of the scenes `scene` (m,)."""
    yaw, extents, kind = world.yaw[scene, winner], world.extents[scene, winner], world.shape[scene, winner]
    turn = _to_local(yaw, extents)
    gradient = (turn @ (point - world.center[scene, winner])[..., None]).squeeze(-1)
    for number, gradient_of in enumerate(_GRADIENTS):
        chosen = kind == number
        gradient[chosen] = gradient_of(gradient[chosen])
    # Normals transform by the transpose of the map into the local frame.
    return torch.nn.functional.normalize((turn.transpose(1, 2) @ gradient[..., None]).squeeze(-1), dim=-1)


def _box_gradient(local: Tensor) -> Tensor:
    magnitude = local.abs()
    return torch.sign(local) * (magnitude == magnitude.max(-1, keepdim=True).values)


def _cylinder_gradient(local: Tensor) -> Tensor:
    x, y, z = local.unbind(-1)
    cap = (y * y > x * x + z * z).to(local.dtype)
    return torch.stack((x * (1 - cap), torch.sign(y) * cap, z * (1 - cap)), -1)


def _cone_gradient(local: Tensor) -> Tensor:
    x, y, z = local.unbind(-1)
    side = (y > -1 + 1e-3).to(local.dtype)
    return torch.stack((x * side, (1 - y) / 4 * side - (1 - side), z * side), -1)


_GRADIENTS = (lambda local: local, _box_gradient, _cylinder_gradient, _cone_gradient)
