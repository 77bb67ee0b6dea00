"""Sizes and constants of VGGT networks, validated on construction. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

HEADS = ("camera", "depth", "point")
WHOLE_NUMBERS = (
    "img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_register_tokens",
    "backbone_depth", "backbone_num_heads", "dpt_features",
    "camera_trunk_depth", "camera_num_heads", "camera_iterations",
)  # fmt: skip
FRACTIONS = ("mlp_ratio", "backbone_mlp_ratio", "rope_freq")
LARGEST = 2**16  # beyond any network; a damaged file must not ask for the memory of more
MAY_BE_ZERO = ("backbone_depth", "num_register_tokens")
BLOCKS = {"aa_order": ["frame", "global"], "aa_block_size": 1}  # published; nothing else is supported
MAX_VIEWS = 200


@dataclass(frozen=True)
class VggtConfig:
    """All sizes and constants of one network. Defaults: VGGT-1B."""

    img_size: int = 518  # pixels; the longer side in training
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24  # frame blocks, and as many global blocks
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 4
    rope_freq: float = 100.0
    backbone_depth: int = 24
    backbone_num_heads: int = 16
    backbone_mlp_ratio: float = 4.0
    dpt_features: int = 256
    dpt_out_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    dpt_layers: tuple[int, ...] = (4, 11, 17, 23)  # entries of the aggregator that the dense heads read
    camera_trunk_depth: int = 4
    camera_num_heads: int = 16
    camera_iterations: int = 4
    # offset of a pixel's ray from its corner: the released network unprojects at whole numbers
    pixel_center: float = 0.0
    heads: tuple[str, ...] = HEADS

    def __post_init__(self) -> None:
        for name in ("dpt_out_channels", "dpt_layers", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in WHOLE_NUMBERS:
            value, least = getattr(self, name), 0 if name in MAY_BE_ZERO else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
                raise ValueError(
                    f"Expected {name} as a whole number from {least} to {LARGEST}, got {str(value)[:80]}. "
                    "Correct it."
                )
        for name in FRACTIONS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"Expected {name} as a finite number above 0, got {value!r}. Correct it.")
        if isinstance(self.pixel_center, bool) or self.pixel_center not in (0.0, 0.5):
            raise ValueError(f"Expected pixel_center 0.0 or 0.5, got {self.pixel_center!r}. Correct it.")
        self._check_heads()
        self._check_dense()

    def _check_heads(self) -> None:
        widths = (
            ("embed_dim", self.embed_dim, "num_heads", 4),
            ("embed_dim", self.embed_dim, "backbone_num_heads", 1),
            ("2 embed_dim", self.layer_dim, "camera_num_heads", 1),
        )
        for width_name, width, heads_name, axes in widths:
            heads = getattr(self, heads_name)
            if width % heads or (width // heads) % axes:
                raise ValueError(
                    f"Expected {width_name} {width} as {heads_name} times a multiple of {axes}, got "
                    f"{heads_name} {heads}. Change one of them."
                )
        unknown = [head for head in self.heads if head not in HEADS]
        if unknown or len(set(self.heads)) < len(self.heads):
            raise ValueError(
                f"Expected heads from {', '.join(HEADS)}, each once, got {self.heads}. Correct them."
            )

    def _check_dense(self) -> None:
        channels, layers = self.dpt_out_channels, self.dpt_layers
        if len(channels) != 4 or any(type(c) is not int or c % 4 or not 4 <= c <= LARGEST for c in channels):
            raise ValueError(
                f"Expected dpt_out_channels as four multiples of 4, got {channels}. Correct them."
            )
        if len(layers) != 4 or any(type(i) is not int or not 0 <= i < self.depth for i in layers):
            raise ValueError(
                f"Expected dpt_layers as four entries from 0 to {self.depth - 1} (depth), got {layers}. "
                "Correct them."
            )
        if self.dpt_features % 8:
            raise ValueError(
                f"Expected dpt_features as a multiple of 8, got {self.dpt_features}. Correct it."
            )

    @property
    def layer_dim(self) -> int:
        """Width of one entry of the aggregator: frame and global tokens side by side."""
        return 2 * self.embed_dim

    @property
    def special_tokens(self) -> int:
        """Camera and register tokens of a view, which come before its patches."""
        return 1 + self.num_register_tokens

    @property
    def table_side(self) -> int:
        """Side of the position table, in patches."""
        return self.img_size // self.patch_size

    def to_json(self) -> dict[str, Any]:
        """A plain dict of JSON values; `from_json` restores an equal config."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> VggtConfig:
        """From a plain dict. Missing keys take VGGT-1B's values; an unknown key is refused by name."""
        if not isinstance(values, Mapping):
            raise ValueError(
                f"Expected the network config as an object of names and values, got {str(values)[:60]}. "
                "Correct it."
            )
        unknown = sorted(set(values) - cls.known())
        if unknown:
            raise ValueError(
                f"Expected network config keys from {', '.join(sorted(cls.known()))}, got "
                f"{', '.join(unknown)}. Remove them."
            )
        return cls(**values)

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any]) -> VggtConfig:
        """From another program's metadata: as `from_json`, but unknown keys (a name, a note) are ignored."""
        for name, published in BLOCKS.items():
            if values.get(name, published) != published:
                raise ValueError(
                    f"Expected {name} {published} in the network config, got {values[name]}. Choose a "
                    "network with the published alternation of frame and global blocks."
                )
        return cls.from_json({key: value for key, value in values.items() if key in cls.known()})

    @classmethod
    def known(cls) -> set[str]:
        return {field.name for field in fields(cls)}


VGGT_1B = VggtConfig()

PRESETS: Mapping[str, VggtConfig] = MappingProxyType(
    {
        "vggt_1b": VGGT_1B,
        "tiny": replace(
            VGGT_1B, img_size=112, embed_dim=128, depth=5, num_heads=4, backbone_depth=3,
            backbone_num_heads=4, dpt_features=32, dpt_out_channels=(32, 48, 64, 64), dpt_layers=(1, 2, 3, 4),
            camera_trunk_depth=1, camera_num_heads=4, pixel_center=0.5, heads=("camera", "depth"),
        ),
    }
)  # fmt: skip


def find_preset(name: str) -> VggtConfig:
    """The preset of that name; a ValueError names the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Expected a preset from {', '.join(PRESETS)}, got {name!r}. Choose one of these.")
    return PRESETS[name]
