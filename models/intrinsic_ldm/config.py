"""Presets of base models, the channels of the intrinsic maps, and the layout of the KL autoencoder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal, get_args

Family = Literal["sd21", "sdxl", "pixart"]  # which conditioning inputs the base network takes, see network.py
FAMILIES: tuple[Family, ...] = get_args(Family)
Noise = Literal["independent", "shared"]  # noise of an image and of its maps in training
CONDITIONS: Mapping[Family, tuple[str, ...]] = {  # prompt tensors that the network takes
    "sd21": ("context",),
    "sdxl": ("context", "pooled"),
    "pixart": ("context", "context_mask"),
}

MAPS = {"depth": 1, "normals": 3, "segmentation": 3, "line": 1}  # channels of each map, in stacking order
CHANNELS = sum(MAPS.values())
SD_SCALE = 0.18215  # latent scaling factor of SD1, SD2.1 and PixArt-alpha; SDXL has 0.13025
STEPS, GUIDANCE = 25, 4.0  # defaults of the tiny preset; the paper has 25 and 7.5 on SD2.1
PRECISIONS = ("float32", "bfloat16")  # selectable compute dtypes
GROUPS = 32  # of every GroupNorm, in ComfyUI and in diffusers
# upper limits, beyond any autoencoder: a damaged file must not cause a long build or a large allocation
LARGEST, MOST_BLOCKS = 65536, 16


@dataclass(frozen=True)
class VaeConfig:
    """A KL autoencoder of latent diffusion, as ComfyUI and diffusers both build it.

    The defaults are those of SD2.1, SDXL and PixArt.
    """

    width: int = 128  # channels at full resolution
    # channel multipliers, from full resolution down; each level but the last halves height and width
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2  # residual blocks per encoder level; one more per decoder level
    latent_channels: int = 4
    base_scale: float = SD_SCALE  # latent scaling factor of the base model

    def __post_init__(self) -> None:
        object.__setattr__(self, "multiples", tuple(self.multiples))
        for name, value in (
            *asdict(self).items(),
            *((f"multiples[{i}]", each) for i, each in enumerate(self.multiples)),
        ):
            if name not in ("multiples", "base_scale") and type(value) is not int:
                raise ValueError(
                    f"Expected a whole number as {name} of an intrinsic VAE, got {value!r}. Save the file "
                    "again."
                )
        sizes = (self.width, self.blocks, self.latent_channels, *self.multiples)
        if max(sizes, default=0) > LARGEST or self.blocks > MOST_BLOCKS or len(self.multiples) > MOST_BLOCKS:
            raise ValueError(
                f"Expected an intrinsic VAE of at most {MOST_BLOCKS} levels and blocks per level, and sizes "
                f"of at most {LARGEST}, got {str(self)[:200]}. Save the file again, or correct the config."
            )
        if (
            self.width < 1
            or self.blocks < 1
            or self.latent_channels < 1
            or not self.multiples
            or min(self.multiples) < 1
        ):
            raise ValueError(
                "Expected width, blocks, latent_channels and each multiple of an intrinsic VAE to be 1 or "
                f"more, got {self}. Save the file again, or correct the config."
            )
        if any(self.width * multiple % GROUPS for multiple in self.multiples):
            raise ValueError(
                f"Expected widths of an intrinsic VAE that are multiples of {GROUPS}, the groups of its "
                f"GroupNorm, got {self.width} times {self.multiples}. Save the file again, or correct the "
                "config."
            )
        if isinstance(self.base_scale, bool) or not 0 < self.base_scale < math.inf:
            raise ValueError(
                f"Expected a base_scale above 0, as SD's {SD_SCALE}, got {self.base_scale}. Save the file "
                "again, or correct the config."
            )

    @property
    def stride(self) -> int:
        """Pixels per latent pixel along each side."""
        return 2 ** (len(self.multiples) - 1)

    def for_diffusers(self, channels: int = CHANNELS) -> dict:
        """Arguments of diffusers' AutoencoderKL; `channels` = 3 gives the base model's own."""
        levels = len(self.multiples)
        return {
            "in_channels": channels, "out_channels": channels,
            "latent_channels": self.latent_channels, "layers_per_block": self.blocks,
            "block_out_channels": [self.width * multiple for multiple in self.multiples],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "norm_num_groups": GROUPS,
        }  # fmt: skip

    def for_core(self, channels: int = CHANNELS) -> dict:
        """Arguments of ComfyUI's AutoencoderKL; `channels` = 3 gives the base model's own."""
        network = {
            "double_z": True, "z_channels": self.latent_channels, "resolution": 256,
            "in_channels": channels, "out_ch": channels,
            "ch": self.width, "ch_mult": list(self.multiples), "num_res_blocks": self.blocks,
            "attn_resolutions": [], "dropout": 0.0,
        }  # fmt: skip
        return {"ddconfig": network, "embed_dim": self.latent_channels}

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> VaeConfig:
        """The inverse of `to_json`; ValueError for any other text."""
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"Expected the config of an intrinsic VAE as JSON, got {text[:80]!r} ({error}). Save the "
                "file again."
            ) from error


@dataclass(frozen=True)
class Preset:
    """A kind of base model with its default sampling settings."""

    family: Family
    size: int  # pixels per side of an image
    steps: int
    guidance: float

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(
                f"Expected a family of {', '.join(FAMILIES)}, got {self.family!r}. Choose one of these."
            )
        if min(self.size, self.steps) < 1 or not 0 <= self.guidance < math.inf:
            raise ValueError(
                f"Expected size and steps of at least 1 and a guidance of at least 0, got {self}. Correct it."
            )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny": Preset("sd21", 128, STEPS, GUIDANCE),
        "sd21": Preset("sd21", 768, 25, 7.5),  # the paper's steps and guidance
        "sdxl": Preset("sdxl", 1024, 25, 5.0),  # diffusers' default guidance
        "pixart": Preset("pixart", 1024, 20, 4.5),  # diffusers' default steps and guidance
    }
)


def find_preset(name: str) -> Preset:
    """The preset of this name; ValueError lists the known names."""
    if name not in PRESETS:
        raise ValueError(f"Expected a preset of {', '.join(PRESETS)}, got {name!r}. Choose one of these.")
    return PRESETS[name]
