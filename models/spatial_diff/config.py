"""Sizes and constants of geometry connectors, and the tiny editor's settings. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

Base = Literal["flux", "flux2"]  # the family of the editor, by core's names: Flux-Kontext, FLUX.2
WHOLE_NUMBERS = ("geometry_width", "width", "layers", "heads", "head_width", "depth_channels", "depth_patch")
LARGEST = 2**16  # beyond any network; a damaged file must not ask for the memory of more
MOST_QUERIES = 2**14


@dataclass(frozen=True)
class ConnectorConfig:
    """All sizes of one connector and of its depth head. Defaults: Flux-Kontext at 512 px, with VGGT-1B."""

    base: Base = "flux"
    geometry_width: int = 2048  # channels of the geometry tokens that come in
    width: int = 3072  # channels of the editor's sequence
    grid: tuple[int, int] = (32, 32)  # rows and columns of queries, one query a token
    first_axis: float = 2.0  # of the tokens' sequence ids (first_axis, row, column, 0 ..)
    layers: int = 8
    heads: int = 24
    head_width: int = 128
    mlp_ratio: float = 4.0
    depth_channels: int = 16  # of the depth latent that the head decodes for training's depth loss
    depth_patch: int = 2  # side of the square of latent pixels that one token decodes to

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid) if isinstance(self.grid, list) else self.grid)
        if self.base not in get_args(Base):
            raise ValueError(
                f"Expected base {' or '.join(get_args(Base))}, got {str(self.base)[:80]!r}. Choose one of "
                "these."
            )
        for name in WHOLE_NUMBERS:
            check_whole_number(name, getattr(self, name))
        if not isinstance(self.grid, tuple) or len(self.grid) != 2:
            raise ValueError(
                f"Expected grid as rows and columns, got {str(self.grid)[:80]}. Give two whole numbers."
            )
        for name, side in zip(("grid rows", "grid columns"), self.grid):
            check_whole_number(name, side)
        if self.queries > MOST_QUERIES:
            raise ValueError(
                f"Expected a grid of at most {MOST_QUERIES} queries, got {self.grid[0]} x {self.grid[1]}. "
                "Choose a smaller one."
            )
        for name, least in (("mlp_ratio", 0.0), ("first_axis", -math.inf)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least < value < math.inf:
                above = " above 0" if least == 0.0 else ""
                raise ValueError(
                    f"Expected {name} as a finite number{above}, got {str(value)[:80]}. Correct it."
                )
        if self.first_axis == 0:
            raise ValueError(
                "Expected a first_axis other than 0, got 0, which the edited image's own tokens have. "
                "Choose 2, which no reference of Flux-Kontext or FLUX.2 has."
            )

    @property
    def queries(self) -> int:
        """Tokens that the connector gives, row-major over the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def inner_width(self) -> int:
        """Channels of queries, keys and values in the attention."""
        return self.heads * self.head_width

    def to_json(self) -> dict[str, Any]:
        """A plain dict of JSON values; `from_json` restores an equal config."""
        return {**asdict(self), "grid": list(self.grid)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ConnectorConfig:
        """From a plain dict. Missing keys take Flux-Kontext's values; an unknown key is refused by name."""
        if not isinstance(values, Mapping):
            raise ValueError(
                f"Expected the connector config as an object of names and values, got {str(values)[:60]}. "
                "Correct it."
            )
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"Expected connector config keys from {', '.join(sorted(known))}, got {', '.join(unknown)}. "
                "Remove them."
            )
        return cls(**values)


def check_whole_number(name: str, value: Any) -> None:
    """ValueError unless `value` is a whole number that a size can be."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ValueError(
            f"Expected {name} as a whole number from 1 to {LARGEST}, got {str(value)[:80]}. Correct it."
        )


@dataclass(frozen=True)
class EditDefaults:
    """Default sampling settings of the tiny editor."""

    steps: int = 20
    guidance: float = 2.0
    mu: float = 0.7  # of the schedule, as the noise levels that it was trained on


DEFAULTS = EditDefaults()
KONTEXT = ConnectorConfig()

PRESETS: Mapping[str, ConnectorConfig] = MappingProxyType(
    {
        "kontext": KONTEXT,
        # one token a latent pixel of 128 channels
        "klein_4b": replace(KONTEXT, base="flux2", depth_channels=128, depth_patch=1),
        "klein_9b": replace(
            KONTEXT, base="flux2", width=4096, heads=32, depth_channels=128, depth_patch=1
        ),
        "flux2_dev": replace(
            KONTEXT, base="flux2", width=6144, heads=48, depth_channels=128, depth_patch=1
        ),
        # the tiny VGGT network's tokens, for the tiny editor at 128 px
        "tiny": replace(
            KONTEXT, geometry_width=256, width=160, grid=(8, 8), layers=2, heads=5, head_width=32,
            depth_channels=32, depth_patch=1,
        ),
    }
)  # fmt: skip


def find_preset(name: str) -> ConnectorConfig:
    """The preset of that name; a ValueError names the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Expected a preset from {', '.join(PRESETS)}, got {name!r}. Choose one of these.")
    return PRESETS[name]
