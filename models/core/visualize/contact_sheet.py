"""The contact sheet: an image, its depth, its normals and a few frames of its orbit on one dark page, with
the settings of the run.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..export.png8 import to_uint8
from ..geometry.camera import intrinsics_from_fov
from ..geometry.normals import normals_from_depth, normals_to_image
from ..geometry.view import View
from .depth_colors import NO_DEPTH, DepthPicture, color_depth, map_colors
from .orbit import Orbit

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_PAGE, _TEXT, _MUTED = (22, 23, 27), (236, 236, 238), (148, 153, 163)
_MARGIN, _GAP, _PANEL, _TALLEST = 56, 24, 440, 1.4
_LABEL, _BODY, _TITLE = 17, 17, 28
_WIDTH = 2 * _MARGIN + 3 * _PANEL + 2 * _GAP
_INNER = _WIDTH - 2 * _MARGIN


def contact_sheet(view: View, orbit: Orbit, *, caption: str, facts: Sequence[str] = ()) -> Tensor:
    """A sheet (h, w, 3) in [0, 1] of a View with batch 1 and an image.

    ``caption`` is printed under the images, without the characters of `find_unprintable`; below it ``facts``
    ("seed 7", "3.2 s", the model ...) on one line. Normals are the View's own, else computed from its depth,
    which the label states, as it states an assumed field of view.
    """
    if len(view) != 1 or view.image is None:
        raise ValueError(
            f"Expected one View with its image for a contact sheet, got a batch of {len(view)}. Pass "
            "view[0], created with image=."
        )
    from PIL import Image, ImageDraw

    depth = color_depth(view)
    normals, normals_label = _normals(view, orbit)
    strip = _strip(orbit)
    missing = find_unprintable(caption)
    caption = "".join(char for char in caption if char not in missing)
    lines = _wrap(caption, _font(_TITLE), _INNER, most=3)
    height, width = view.depth.shape[1:]
    panel = (_PANEL, round(_PANEL * min(height / width, _TALLEST)))
    small = _fit(strip[0], ((_INNER - 3 * _GAP) // 4, _PANEL))
    strip_top = _MARGIN + panel[1] + 92
    text_top = strip_top + small[1] + 50
    total = text_top + len(lines) * 38 + (28 if lines else 0) + _BODY + _MARGIN
    page = Image.new("RGB", (_WIDTH, total), _PAGE)
    pen = ImageDraw.Draw(page)

    labels = ["Image", f"Depth, {'metres' if view.units == 'metric' else 'relative'}", normals_label]
    for index, (picture, label) in enumerate(zip([view.image[0], depth.image, normals], labels, strict=True)):
        left = _MARGIN + index * (_PANEL + _GAP)
        _paste(page, picture, (left, _MARGIN), panel, lanczos=index == 0)
        pen.text((left, _MARGIN + panel[1] + 14), label, font=_font(_LABEL), fill=_MUTED)
    _legend(page, depth, (_MARGIN + _PANEL + _GAP, _MARGIN + panel[1] + 42), _PANEL)
    for index, frame in enumerate(strip):
        left = _MARGIN + round(index * (_INNER + _GAP) / 4)
        _paste(page, frame, (left, strip_top), small, lanczos=True)
    assumed = ", assumed" if orbit.fov_was_assumed else ""
    orbit_label = f"Orbit of the point cloud, {orbit.fov_degrees:.0f} degrees of view{assumed}"
    pen.text((_MARGIN, strip_top + small[1] + 14), orbit_label, font=_font(_LABEL), fill=_MUTED)
    for index, line in enumerate(lines):
        pen.text((_MARGIN, text_top + 12 + index * 38), line, font=_font(_TITLE), fill=_TEXT)
    _last_line(pen, facts, total - _MARGIN - _BODY)
    return torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).reshape(total, _WIDTH, 3) / 255


def find_unprintable(text: str) -> str:
    """The characters, each once, for which the sheet's font has no glyph."""
    font = _font(_TITLE)
    box = bytes(font.getmask("\U0010ffff"))  # never assigned: what the font draws in a missing glyph's stead
    return "".join(
        char for char in dict.fromkeys(text) if not char.isspace() and bytes(font.getmask(char)) == box
    )


def _normals(view: View, orbit: Orbit) -> tuple[Tensor, str]:
    """The normals as an image, and their label."""
    normals, label = view.normals, "Normals"
    if normals is None:
        height, width = view.depth.shape[1:]
        intrinsics = (
            view.intrinsics
            if view.intrinsics is not None
            else intrinsics_from_fov(orbit.fov_degrees, width, height)[None]
        )
        normals, label = (
            normals_from_depth(view.depth.cpu(), intrinsics.cpu(), view.mask.cpu()),
            "Normals of this depth",
        )
    known = (normals[0] != 0).any(dim=-1, keepdim=True).cpu()
    return torch.where(known, normals_to_image(normals[0].cpu()), torch.tensor(NO_DEPTH)), label


def _strip(orbit: Orbit) -> list[Tensor]:
    """Four frames: from the left, above, the right, and at the level of the image."""
    count = len(orbit.frames)
    return [orbit.frames[round(share * count) % count] for share in (0.75, 0.0, 0.25, 0.5)]


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _fit(picture: Tensor, box: tuple[int, int]) -> tuple[int, int]:
    """The largest width and height of the image's shape inside a box."""
    height, width = picture.shape[:2]
    scale = min(box[0] / width, box[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _paste(
    page: Image.Image, picture: Tensor, corner: tuple[int, int], box: tuple[int, int], *, lanczos: bool
) -> None:
    """Draw an image in the middle of a box, with anti-aliased rounded corners.

    Maps are scaled without Lanczos' overshoot.
    """
    from PIL import Image, ImageDraw

    size = _fit(picture, box)
    filtering = Image.Resampling.LANCZOS if lanczos else Image.Resampling.BICUBIC
    scaled = Image.fromarray(to_uint8(picture).numpy()).resize(size, filtering)
    mask = Image.new("L", (4 * size[0], 4 * size[1]), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * size[0] - 1, 4 * size[1] - 1), radius=40, fill=255)
    place = (corner[0] + (box[0] - size[0]) // 2, corner[1] + (box[1] - size[1]) // 2)
    page.paste(scaled, place, mask.resize(size, Image.Resampling.LANCZOS))


def _legend(page: Image.Image, depth: DepthPicture, corner: tuple[int, int], width: int) -> None:
    """A bar from near to far with the depths at its ends and middle, and the gray of missing depth if there
    is any.
    """
    from PIL import ImageDraw

    pen, (left, top) = ImageDraw.Draw(page), corner
    bar = map_colors(torch.linspace(1, 0, width)).expand(10, width, 3)
    _paste(page, bar, (left, top), (width, 10), lanczos=False)
    near, middle, far = (f"{depth.depth_at(share):.3g}" for share in (0, 0.5, 1))
    for place, anchor, text in (
        (left, "lt", f"near: {near}"),
        (left + width // 2, "mt", middle),
        (left + width, "rt", f"far: {far}"),
    ):
        pen.text((place, top + 18), text, font=_font(15), fill=_MUTED, anchor=anchor)
    if depth.has_holes:
        label_end = left + width
        pen.text((label_end, top - 28), "no depth", font=_font(15), fill=_MUTED, anchor="rt")
        chip = label_end - round(_font(15).getlength("no depth")) - 22
        pen.rounded_rectangle(
            (chip, top - 28, chip + 14, top - 14),
            radius=3,
            fill=tuple(round(255 * level) for level in NO_DEPTH),
        )


def _last_line(pen: ImageDraw.ImageDraw, facts: Sequence[str], top: int) -> None:
    """The facts on the left, the name on the right."""
    name = "SpatialWeave"
    room = _INNER - round(_font(_BODY).getlength(name)) - _GAP
    line = _wrap("  \u00b7  ".join(facts), _font(_BODY), room, most=1)
    if line:
        pen.text((_MARGIN, top), line[0], font=_font(_BODY), fill=_MUTED)
    pen.text((_WIDTH - _MARGIN, top), name, font=_font(_BODY), fill=_MUTED, anchor="ra")


def _wrap(text: str, font, width: int, *, most: int) -> list[str]:
    """Lines that fit a width, truncated with dots after ``most`` lines or in too long a word."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
        if len(lines) > most:
            break
    cut = len(lines) > most
    lines = lines[:most]
    for index, line in enumerate(lines):
        if font.getlength(line) > width or (cut and index == most - 1):
            lines[index] = _shorten(line, font, width)
    return lines


def _shorten(line: str, font, width: int) -> str:
    """The beginning of a line, with dots, that fits a width."""
    fitting = bisect.bisect_right(
        range(1, len(line) + 1), width, key=lambda count: font.getlength(line[:count].rstrip() + " ...")
    )
    return line[:fitting].rstrip() + " ..."
