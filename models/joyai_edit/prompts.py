"""The prompts that JoyAI-Image's spatial edits were trained on, byte for byte.

Object texts are inserted verbatim, with their own article or none. Angles are changes from the source view:
yaw + orbits to the viewer's right, pitch + goes up and looks down.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

# the direction of the object's front in the image, in the order of SpatialEdit-Bench's indices 00 to 07
ObjectView = Literal["right", "front right", "front", "front left", "left", "rear left", "rear", "rear right"]
VIEWS: tuple[ObjectView, ...] = get_args(ObjectView)
PromptZoom = Literal["unchanged", "in", "out"]
ZOOMS: tuple[PromptZoom, ...] = get_args(PromptZoom)
ViewForm = Literal["benchmark", "readme"]
VIEW_FORMS: tuple[ViewForm, ...] = get_args(ViewForm)
AngleForm = Literal["one decimal", "integer"]
ANGLE_FORMS: tuple[AngleForm, ...] = get_args(AngleForm)

YAW_STEP, YAW_RANGE = 45, (-135, 180)  # degrees; the grid of the training data
PITCH_STEP, PITCH_RANGE = 15, (-75, 75)
STEEPEST = 90.0

_SYSTEM = (
    "<|im_start|>system\n \\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
)
_VISION = "<|vision_start|><|image_pad|><|vision_end|>"


def move_prompt(name: str) -> str:
    """The prompt that moves an object into the red box."""
    return f"Move {require_name(name)} into the red box and finally remove the red box."


def rotate_prompt(name: str, view: ObjectView, form: ViewForm = "benchmark") -> str:
    """The prompt that turns an object until the image shows this view of it.

    The forms differ for front and rear alone: the readme writes "front side view".
    """
    if view not in VIEWS:
        raise ValueError(f"Expected a view of {', '.join(VIEWS)}, got {view!r}. Choose one of them.")
    side = "" if view in ("front", "rear") and form == "benchmark" else " side"
    return f"Rotate {require_name(name)} to show the {view}{side} view."


def require_name(name: str) -> str:
    """The object's name as it is, or a ValueError that says what is wrong with it."""
    if not name.strip():
        raise ValueError(
            "Expected the name of an object, got an empty text. Write it as you would say it, like "
            '"the red mug on the left".'
        )
    if marker := re.search(r"<\|\w*\|>", name):
        raise ValueError(
            f"Expected the name of an object, got a text with {marker.group()}, which ends the prompt in the "
            "text encoder. Leave it out."
        )
    if "\n" in name or "\r" in name:
        raise ValueError(
            "Expected the name of an object in one line, got several lines. Write it in one line: the model "
            "was trained on nothing else."
        )
    return name


def name_notes(name: str) -> list[str]:
    """Notes on a name that is used verbatim."""
    notes = []
    if "{" in name or "}" in name:
        notes.append(
            "The name has braces: they reach the text encoder as they are. In a prompt widget of ComfyUI "
            "they would choose one of several texts: keep the prompt linked, do not copy it."
        )
    if name != name.strip():
        notes.append("The name begins or ends with a blank, which is kept: the model was trained without.")
    return notes


@dataclass(frozen=True)
class CameraChange:
    """A change of the viewpoint as the prompt states it: degrees of one decimal, yaw in (-180, 180]."""

    yaw: float
    pitch: float
    zoom: PromptZoom
    notes: tuple[str, ...] = ()

    def prompt(self, form: AngleForm = "one decimal") -> str:
        """The four lines of the camera prompt."""
        write = _one_decimal if form == "one decimal" else _integer
        return "\n".join([
            "Move the camera.",
            f"- Camera rotation: Yaw {write(self.yaw)}\N{DEGREE SIGN}, "
            f"Pitch {write(self.pitch)}\N{DEGREE SIGN}.",
            f"- Camera zoom: {self.zoom}.",
            "- Keep the 3D scene static; only change the viewpoint.",
        ])  # fmt: skip

    def all_notes(self, form: AngleForm) -> list[str]:
        """Its notes, and one on what the integer form rounds."""
        rounded = form == "integer" and any(angle != int(angle) for angle in (self.yaw, self.pitch))
        lost = f"The integer form has no decimals: yaw {self.yaw:g} and pitch {self.pitch:g} were rounded."
        return [*self.notes, *([lost] if rounded else [])]


def camera_change(yaw: float, pitch: float, zoom: PromptZoom) -> CameraChange:
    """The angles rounded to one decimal, then yaw wrapped into (-180, 180]; |pitch| > 90 is refused."""
    for name, angle in (("yaw", yaw), ("pitch", pitch)):
        if not math.isfinite(angle):
            raise ValueError(f"Expected {name} in degrees, got {angle}. Set a number.")
    if zoom not in ZOOMS:
        raise ValueError(f"Expected a zoom of {', '.join(ZOOMS)}, got {zoom!r}. Choose one of them.")
    tilted, turned = round(pitch, 1) + 0.0, wrap_degrees(round(yaw, 1))
    if abs(tilted) > STEEPEST:
        raise ValueError(
            f"Expected a pitch of -90 to 90 degrees, got {pitch:g}. A camera cannot go over the top: turn "
            "yaw by 180 and use a smaller pitch; the model was trained on -75 to 75."
        )
    return CameraChange(turned, tilted, zoom, tuple(_camera_notes(yaw, turned, tilted, zoom)))


def wrap_degrees(angle: float) -> float:
    """An angle of one decimal in (-180, 180], without a negative zero."""
    return round(180.0 - (180.0 - angle) % 360.0, 1) + 0.0


def nearest_trained(yaw: float, pitch: float) -> tuple[int, int]:
    """The nearest viewpoint of the training grid; yaw counts around the circle."""
    turned = int(math.floor(yaw / YAW_STEP + 0.5)) * YAW_STEP
    turned += 360 if turned < YAW_RANGE[0] else 0
    tilted = int(math.floor(pitch / PITCH_STEP + 0.5)) * PITCH_STEP
    return turned, min(max(tilted, PITCH_RANGE[0]), PITCH_RANGE[1])


def is_trained(yaw: float, pitch: float) -> bool:
    """Whether a viewpoint is on the grid of the training data; whole turns of yaw do not count."""
    return yaw % YAW_STEP == 0 and pitch % PITCH_STEP == 0 and PITCH_RANGE[0] <= pitch <= PITCH_RANGE[1]


def encoder_text(prompt: str, images: int) -> str:
    """The text that the encoder tokenizes for a prompt with that many images, with one vision block each."""
    return f"{_SYSTEM}<|im_start|>user\n{_VISION * images}{prompt}<|im_end|>\n<|im_start|>assistant\n"


def _camera_notes(asked: float, yaw: float, pitch: float, zoom: PromptZoom):
    if round(asked, 1) != yaw:
        yield f"Yaw {asked:g} was wrapped to {yaw:g} degrees, the same viewpoint."
    if not is_trained(yaw, pitch):
        near = nearest_trained(yaw, pitch)
        yield (
            f"Yaw {yaw:g}, pitch {pitch:g} is not among the trained viewpoints (yaw in steps of 45, pitch in "
            f"steps of 15 up to 75) and works less well. The nearest is yaw {near[0]}, pitch {near[1]}."
        )
    if (yaw, pitch, zoom) == (0.0, 0.0, "unchanged"):
        yield "This asks for no change: yaw 0, pitch 0, zoom unchanged."


def _one_decimal(angle: float) -> str:
    return f"{angle:.1f}"


def _integer(angle: float) -> str:
    return str(math.floor(angle + 0.5))
