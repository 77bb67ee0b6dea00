"""Two of core's cameras (LOAD3D_CAMERA: y up, looking down -z) to the change of viewpoint of a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .prompts import CameraChange, PromptZoom, camera_change

UNCHANGED = 0.01  # relative change of the distance below which the zoom is unchanged
SAME = 1e-3  # largest distance of the two targets, relative to the camera's
ROLL = 0.5  # largest roll about the view axis in degrees
OVERHEAD = 89.9  # degrees of pitch above which yaw is not defined
_DO = "Use two cameras of core's Create Camera Info in mode orbit with one target."

Vector = tuple[float, float, float]


def change_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> CameraChange:
    """Yaw and pitch about the common target, and zoom by the change of the distance to it."""
    first, second = _read_orbit(before, "before"), _read_orbit(after, "after")
    yaw, pitch, distance = (late - early for early, late in zip(first[0], second[0], strict=True))
    scale = max(first[0][2], second[0][2])
    if math.dist(first[1], second[1]) > SAME * scale:
        raise ValueError(
            f"Expected two cameras that look at one target, got targets {_format_point(first[1])} and "
            f"{_format_point(second[1])}. The model orbits around what the image shows. {_DO}"
        )
    for name, unit in (("fov", " degrees"), ("zoom", "")):
        values = [_number(camera.get(name, 1.0), f"{name} of {which}")
                  for camera, which in ((before, "before"), (after, "after"))]  # fmt: skip
        if not math.isclose(*values, rel_tol=1e-3):
            raise ValueError(
                f"Expected the same {name} in both cameras, got {values[0]:g} and {values[1]:g}{unit}. The "
                "model zooms by moving the camera: change the distance to the target instead."
            )
    return camera_change(yaw, pitch, _zoom(distance, first[0][2]))


def _zoom(change: float, distance: float) -> PromptZoom:
    if abs(change) <= UNCHANGED * distance:
        return "unchanged"
    return "in" if change < 0 else "out"


def _read_orbit(camera: Mapping[str, Any], which: str) -> tuple[Vector, Vector]:
    """((yaw, pitch, distance), target): degrees, and the camera's units."""
    if not isinstance(camera, Mapping):
        raise ValueError(f"Expected a camera at {which}, got {type(camera).__name__}. {_DO}")
    kind = camera.get("cameraType", "perspective")
    if kind != "perspective":
        raise ValueError(
            f"Expected a perspective camera at {which}, got an {kind} one. Its distance changes nothing in "
            "the image: choose perspective."
        )
    position, target = _vector(camera, "position", which), _vector(camera, "target", which)
    x, y, z = (p - t for p, t in zip(position, target, strict=True))
    distance = math.sqrt(x * x + y * y + z * z)
    if distance <= 1e-9:
        raise ValueError(
            f"Expected a camera away from its target at {which}, got both at {_format_point(position)}. Move "
            "the camera away from the target."
        )
    pitch = math.degrees(math.asin(max(-1.0, min(1.0, y / distance))))
    if abs(pitch) > OVERHEAD:
        raise ValueError(
            f"Expected a pitch below {OVERHEAD} degrees at {which}, got {pitch:.1f}. Straight from above yaw "
            "has no meaning: lower the camera a little."
        )
    _check_level(camera, which)
    return (math.degrees(math.atan2(x, z)), pitch, distance), target


def _check_level(camera: Mapping[str, Any], which: str) -> None:
    """Refuse a camera that rolls about its view axis: a prompt cannot state that."""
    if camera.get("quaternion") is None:
        return
    x, y, z, w = (_number(camera["quaternion"].get(axis), f"quaternion.{axis} of {which}") for axis in "xyzw")
    length = math.sqrt(x * x + y * y + z * z + w * w)
    if length < 1e-6:
        return
    x, y, z, w = x / length, y / length, z / length, w / length
    rise = math.degrees(math.asin(max(-1.0, min(1.0, 2 * (x * y + w * z)))))  # of the camera's right
    if abs(rise) > ROLL:
        raise ValueError(
            f"Expected a level camera at {which}, got one that rolls by {abs(rise):.1f} degrees. The "
            "prompt has no roll: set roll to 0."
        )


def _vector(camera: Mapping[str, Any], name: str, which: str) -> Vector:
    value = camera.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"Expected {name} with x, y and z in the camera at {which}, got {value!r}. {_DO}")
    x, y, z = (_number(value.get(axis), f"{name}.{axis} of {which}") for axis in "xyz")
    return x, y, z


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"Expected a number at {name}, got {value!r}. {_DO}")
    return float(value)


def _format_point(point: Vector) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in point) + ")"
