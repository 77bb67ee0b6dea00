"""Which of the world's colors an image shows, to refuse an instruction about an object that is not there.

The world's solids are far more saturated than its floors and walls, so a color is there where enough pixels
have its hue. A wooden floor can pass for orange; shapes are not looked at.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from .grammar import find_objects

# hue in degrees and saturation of a solid's own color
HUES = MappingProxyType(
    {
        "red": (1.6, 0.87), "orange": (28.3, 0.94), "yellow": (52.0, 0.87), "green": (128.6, 0.79),
        "cyan": (181.9, 0.84), "blue": (226.2, 0.84), "purple": (277.4, 0.74), "pink": (333.6, 0.52),
    }
)  # fmt: skip
REACH = 12.0  # degrees; two hues are at least 23.7 apart
LEAST_SATURATION = 0.6  # of the solid's own: shading and haze take some of it
LEAST_SHARE = 1.5e-3  # of the image: 25 pixels of 128 x 128; the smallest solids have twice as many


def find_colors(image: Tensor) -> tuple[str, ...]:
    """The colors of solids in an image (h, w, 3) in [0, 1], in the order of their hues."""
    hue, saturation = hue_and_saturation(image.float())
    found = []
    for name, (own_hue, own_saturation) in HUES.items():
        distance = ((hue - own_hue + 180) % 360 - 180).abs()
        fits = (distance < REACH) & (saturation > LEAST_SATURATION * own_saturation)
        if float(fits.float().mean()) >= LEAST_SHARE:
            found.append(name)
    return tuple(found)


def hue_and_saturation(image: Tensor) -> tuple[Tensor, Tensor]:
    """HSV's hue (h, w) in degrees and saturation (h, w) in [0, 1] of sRGB values (h, w, 3)."""
    high, low = image.amax(dim=-1), image.amin(dim=-1)
    span = (high - low).clamp_min(1e-6)
    red, green, blue = image.unbind(dim=-1)
    sixths = torch.where(
        high == red, ((green - blue) / span) % 6,
        torch.where(high == green, (blue - red) / span + 2, (red - green) / span + 4),
    )  # fmt: skip
    return 60 * sixths, (high - low) / high.clamp_min(1e-6)


def explain_absent(text: str, image: Tensor) -> str | None:
    """A sentence if an instruction names an object of a color that the image (h, w, 3) does not show."""
    seen = find_colors(image)
    for named in find_objects(text):
        if named.color and named.color not in seen:
            shown = f"whose solids are {', '.join(seen)}" if seen else "without any of the colors"
            return (
                f"Expected the {named} in the image, got an image {shown}. Name an object that is there."
            )
    return None
