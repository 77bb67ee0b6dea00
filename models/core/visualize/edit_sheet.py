"""The page of a checked edit: before and after side by side, what moved, what changed, and the verdict."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry.resize import resize_antialiased

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_PAGE, _TEXT, _MUTED = (22, 23, 27), (236, 236, 238), (148, 153, 163)
_DONE, _FAILED = (88, 196, 120), (240, 104, 88)
_OLD, _NEW, _GOAL = (84, 190, 255), (120, 230, 120), (255, 214, 64)
_CHANGED = (255, 64, 160)
_MARGIN, _GAP, _PANEL, _LINE = 24, 16, 480, 22
_SIZE, _SMALL, _LINES = 16, 13, 4


def edit_sheet(
    before: Tensor,
    after: Tensor,
    *,
    object_before: Tensor,
    object_after: Tensor,
    changed: Tensor,
    sentence: str,
    is_done: bool,
    target: Tensor | None = None,
) -> Tensor:
    """A page (h, w, 3) in [0, 1] of two images (h, w, 3) and masks (h, w) of one size.

    Blue: the object's outline before; green: after; yellow: where it was to go; pink: other changes.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = before.shape[:2]
    panel = (_PANEL, max(1, round(_PANEL * height / width)))
    other = changed & ~object_before & ~object_after
    left = _panel(before, panel, {_OLD: object_before})
    right = _panel(after, panel, {_OLD: object_before, _NEW: object_after, _GOAL: target}, tint=other)
    font, small = (ImageFont.load_default(size=size) for size in (_SIZE, _SMALL))
    full = 2 * _MARGIN + 2 * _PANEL + _GAP
    lines = _wrapped(sentence, font, full - 2 * _MARGIN)[:_LINES]
    text_top = _MARGIN + panel[1] + 40
    # one height for all verdicts, so that the pages of a batch are one image
    page = Image.new("RGB", (full, text_top + _LINES * _LINE + _MARGIN), _PAGE)
    pen = ImageDraw.Draw(page)
    page.paste(left, (_MARGIN, _MARGIN))
    page.paste(right, (_MARGIN + _PANEL + _GAP, _MARGIN))
    _arrow(pen, object_before, object_after, panel, corner=(_MARGIN + _PANEL + _GAP, _MARGIN))
    _legend(pen, small, _MARGIN + panel[1] + 10, has_target=target is not None)
    for index, line in enumerate(lines):
        color = (_DONE if is_done else _FAILED) if index == 0 else _TEXT
        pen.text((_MARGIN, text_top + index * _LINE), line, font=font, fill=color)
    return torch.from_numpy(np.asarray(page).copy()).float() / 255


def resize_masks(masks: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Masks (h, w) as one (b, h, w) of floats at another height and width."""
    stack = torch.stack(masks)[:, None].float()
    return F.interpolate(stack, size, mode="nearest-exact")[:, 0]


def _panel(image: Tensor, size: tuple[int, int], outlines: dict, tint: Tensor | None = None) -> Image.Image:
    """An image at the panel's size with outlines of masks and a tinted region."""
    from PIL import Image

    rows_columns = size[::-1]
    pixels = resize_antialiased(image.permute(2, 0, 1)[None], rows_columns)[0].permute(1, 2, 0)
    if tint is not None:
        region = resize_antialiased(tint[None, None].float(), rows_columns)[0, 0] > 0.5
        pink = torch.tensor(_CHANGED, device=pixels.device) / 255
        pixels = torch.where(region[..., None], 0.55 * pixels + 0.45 * pink, pixels)
    for color, mask in outlines.items():
        if mask is None or not bool(mask.any()):
            continue
        region = resize_antialiased(mask[None, None].float(), rows_columns)[0]
        solid = (region > 0.5).float()
        rim = (F.max_pool2d(solid[None], 5, 1, 2)[0] - solid)[0] > 0
        pixels = torch.where(rim[..., None], torch.tensor(color, device=pixels.device) / 255, pixels)
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().cpu().numpy())


def _arrow(pen: ImageDraw.ImageDraw, old: Tensor, new: Tensor, panel, *, corner: tuple[int, int]) -> None:
    """An arrow between the centers of two masks, if they are some pixels apart."""
    if not (bool(old.any()) and bool(new.any())):
        return
    height, width = old.shape
    scale = np.array([panel[0] / width, panel[1] / height])
    ends = [mask.nonzero().float().mean(0).flip(0).cpu().numpy() + 0.5 for mask in (old, new)]
    start, end = (point * scale + np.array(corner) for point in ends)
    way = end - start
    length = float(np.hypot(*way))
    if length < 8:
        return
    along, across = way / length, np.array([-way[1], way[0]]) / length
    head = min(16.0, 0.5 * length)
    wings = [end - head * along + side * 0.5 * head * across for side in (-1, 1)]
    for color, thick in (((0, 0, 0), 6), ((255, 255, 255), 3)):
        pen.line([tuple(start), tuple(end - 0.6 * head * along)], fill=color, width=thick)
    pen.polygon([tuple(end), *(tuple(wing) for wing in wings)], fill=(255, 255, 255), outline=(0, 0, 0))


def _legend(pen: ImageDraw.ImageDraw, font, top: int, *, has_target: bool) -> None:
    labels = [(_OLD, "object before"), (_NEW, "object after"), (_CHANGED, "other changes")]
    labels += [(_GOAL, "where it was to go")] if has_target else []
    left = _MARGIN
    for color, label in labels:
        pen.rectangle((left, top + 2, left + 11, top + 13), fill=color)
        pen.text((left + 18, top), label, font=font, fill=_MUTED)
        left += 18 + int(font.getlength(label)) + 24


def _wrapped(sentence: str, font, width: int) -> list[str]:
    """The sentence in lines that fit into a width; the verdict stands on the first line, alone."""
    letters = max(20, int(width / font.getlength("e")))
    head, _, rest = sentence.partition(". ")
    lines = textwrap.wrap(head + ("." if rest else ""), letters)
    return lines + (textwrap.wrap(rest, letters) if rest else [])
