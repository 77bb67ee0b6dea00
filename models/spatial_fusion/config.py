"""Sizes of a depth adapter, the latent it is for, and how depth is coded for it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

Code = Literal["log_iqr", "unit_mean"]
Invalid = Literal["zero", "channel"]
LARGEST = 2**12  # channels; a damaged file must not ask for the memory of more


@dataclass(frozen=True)
class DepthAdapterConfig:
    """One adapter. Defaults: the paper's, for the latent of OmniGen2, which is FLUX.1's."""

    latent_format: str = "Flux"  # ComfyUI's name of the latent's scale and shift
    latent_channels: int = 16
    stride: int = 8  # pixels of a latent cell along each side
    base: str = "omnigen2"  # the model that the adapter was trained on
    widths: tuple[int, ...] = (32, 64, 128)  # channels after each convolution of stride 2
    # log_iqr: log depth, minus its median, divided by its interquartile range, clamped to +-bound;
    # unit_mean: depth by its mean, contracted into (0, 2), minus 1
    code: Code = "log_iqr"
    bound: float = 3.0
    least_iqr: float = 0.1  # of log depth: a wall seen from the front is not stretched to a landscape
    # zero: nothing is added where no pixel of a latent cell is valid;
    # channel: validity is a second input, so that the adapter may learn what missing depth means, as sky
    invalid: Invalid = "zero"

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        for name in ("latent_format", "base"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"Expected {name} as a name, got {getattr(self, name)!r}. Correct it.")
        for name, value in (("latent_channels", self.latent_channels), *(("widths", w) for w in self.widths)):
            if type(value) is not int or not 1 <= value <= LARGEST:
                raise ValueError(
                    f"Expected {name} as whole numbers from 1 to {LARGEST}, got {str(value)[:80]}. Correct "
                    "them."
                )
        if type(self.stride) is not int or self.stride != 2 ** len(self.widths):
            raise ValueError(
                f"Expected stride 2 to the power of the number of widths, {2 ** len(self.widths)}, got "
                f"{str(self.stride)[:80]}. Change one of them."
            )
        for name in ("bound", "least_iqr"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"Expected {name} as a finite number above 0, got {value!r}. Correct it.")
        for name, options in (("code", get_args(Code)), ("invalid", get_args(Invalid))):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"Expected {name} as one of {', '.join(options)}, got {getattr(self, name)!r}. Choose "
                    "one of these."
                )

    @property
    def inputs(self) -> int:
        """Channels that the first convolution reads."""
        return 2 if self.invalid == "channel" else 1

    @property
    def described(self) -> str:
        """The latent it is for, in words of a message."""
        return (
            f"{self.latent_format} latents of {self.latent_channels} channels and stride {self.stride} "
            f"(trained on {self.base})"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict of JSON values; `from_json` restores an equal config."""
        return asdict(self) | {"widths": list(self.widths)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DepthAdapterConfig:
        """From a plain dict with every key; a missing or unknown one is refused by name."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            found = sorted(values) if isinstance(values, Mapping) else str(values)[:60]
            raise ValueError(f"Expected the adapter's config with {sorted(names)}, got {found}. Correct it.")
        return cls(**values)


_SD = {"latent_channels": 4}
PRESETS: Mapping[str, DepthAdapterConfig] = MappingProxyType(
    {
        "omnigen2": DepthAdapterConfig(),
        "flux": DepthAdapterConfig(base="flux"),
        "flux2": DepthAdapterConfig("Flux2", 128, 16, "flux2", (32, 64, 128, 256)),
        "qwen_image": DepthAdapterConfig("Wan21", base="qwen_image"),
        "joyimage": DepthAdapterConfig("Wan21", base="joyimage"),
        "sd15": DepthAdapterConfig("SD15", base="sd15", **_SD),
        "sd21": DepthAdapterConfig("SD15", base="sd21", **_SD),
        "sdxl": DepthAdapterConfig("SDXL", base="sdxl", **_SD),
        "pixart": DepthAdapterConfig("SD15", base="pixart", **_SD),
        "pixart_sigma": DepthAdapterConfig("SDXL", base="pixart_sigma", **_SD),
        "tiny": DepthAdapterConfig("TinyLatent", 8, 8, "SpatialWeave tiny", invalid="channel"),
    }
)


def find_preset(name: str) -> DepthAdapterConfig:
    """The preset of that name; a ValueError names the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Expected a preset from {', '.join(PRESETS)}, got {name!r}. Choose one of these.")
    return PRESETS[name]
