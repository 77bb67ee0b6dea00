"""Sizes and constants of Modality Forcing networks, validated on construction. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

Mode = Literal["joint", "image_to_depth", "depth_to_image"]
MODES: tuple[str, ...] = get_args(Mode)

# the paper's name for a double block with a third stream
OTHER_NAMES = {"num_triple_blocks": "num_double_blocks"}
WHOLE_NUMBERS = (
    "in_channels", "depth_channels", "context_in_dim", "hidden_size", "num_heads",
    "num_double_blocks", "num_single_blocks", "num_depth_decoder_blocks", "depth_patch", "depth_head_kernel",
    "time_embed_dim",
)  # fmt: skip
FRACTIONS = ("theta", "mlp_ratio", "time_max_period", "time_factor", "shift_mu", "shift_sigma", "x0_t_min")
# larger than any network: a damaged file must not cost more time or memory than this
LARGEST, MOST_BLOCKS = 2**20, 1000
MAY_BE_ZERO = ("num_double_blocks", "num_single_blocks", "num_depth_decoder_blocks")


@dataclass(frozen=True)
class ModalityForcingConfig:
    """All sizes and constants of one network. Defaults: klein_9b, the released one."""

    in_channels: int = 128  # RGB latent channels; one token per latent pixel
    depth_channels: int = 256  # depth_patch^2: depth is in pixel space
    context_in_dim: int = 12288
    hidden_size: int = 4096
    num_heads: int = 32
    num_double_blocks: int = 8
    num_single_blocks: int = 24
    num_depth_decoder_blocks: int = 4
    axes_dim: tuple[int, ...] = (32, 32, 32, 32)  # RoPE channels of (modality, row, column, text index)
    theta: float = 2000
    mlp_ratio: float = 3.0
    depth_patch: int = 16  # image pixels per token, each way, in both streams
    # tokens each way that the depth head reads for a token: 1 is the released head, a linear map of the token
    # alone; 3 also reads its eight neighbors, so that patches meet at their borders
    depth_head_kernel: int = 1
    time_embed_dim: int = 256
    time_max_period: float = 10000
    time_factor: float = 1000.0
    shift_mu: float = 1.1
    shift_sigma: float = 1.0
    x0_t_min: float = 0.05  # the released sampler's lower bound on t_depth
    # trained with sky as infinite depth, which contracts to 2; otherwise sky is an invalid pixel
    infinite_sky: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))
        for name in WHOLE_NUMBERS:
            value, least = getattr(self, name), 0 if name in MAY_BE_ZERO else 1
            if not isinstance(value, int) or not least <= value <= LARGEST:
                raise ValueError(
                    f"Expected a whole number from {least} to {LARGEST} for {name} in the network config, "
                    f"got {str(value)[:80]}. Correct {name}."
                )
        if sum(getattr(self, name) for name in MAY_BE_ZERO) > MOST_BLOCKS:
            raise ValueError(
                f"Expected at most {MOST_BLOCKS} blocks in {', '.join(MAY_BE_ZERO)} together, got "
                f"{sum(getattr(self, name) for name in MAY_BE_ZERO)}. Lower their numbers."
            )
        self._check_fractions()
        self._check_heads()
        if self.depth_channels != self.depth_patch**2:
            raise ValueError(
                f"Expected depth_channels {self.depth_patch**2} for patches of {self.depth_patch} x "
                f"{self.depth_patch} pixels, got {self.depth_channels}. Set depth_channels to depth_patch "
                "squared."
            )
        if self.depth_head_kernel % 2 == 0:
            raise ValueError(f"Expected an odd depth_head_kernel, got {self.depth_head_kernel}.")
        if self.time_embed_dim % 2:
            raise ValueError(
                f"Expected an even time_embed_dim (half cosines, half sines), got {self.time_embed_dim}. "
                "Give an even number."
            )
        if self.mlp_hidden < 1:
            raise ValueError(
                f"Expected mlp_ratio times hidden_size of at least 1, got {self.mlp_ratio} x "
                f"{self.hidden_size}. Raise one of them."
            )
        for name in ("theta", "time_max_period", "time_factor", "shift_sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"Expected a positive {name} in the network config, got {getattr(self, name)!r}. "
                    f"Correct {name}."
                )

    def _check_fractions(self) -> None:
        for name in FRACTIONS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(
                    f"Expected a finite number for {name} in the network config, got {value!r}. Correct "
                    f"{name}."
                )
        if not isinstance(self.infinite_sky, bool):
            raise ValueError(
                f"Expected true or false for infinite_sky, got {self.infinite_sky!r}. Correct it in the "
                "network config."
            )

    def _check_heads(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"Expected hidden_size as a multiple of num_heads ({self.num_heads}), got "
                f"{self.hidden_size}. Change one of them."
            )
        if (
            len(self.axes_dim) != 4
            or any(dim % 2 or dim < 0 for dim in self.axes_dim)
            or sum(self.axes_dim) != self.head_dim
        ):
            raise ValueError(
                f"Expected axes_dim as four even numbers whose sum is the head width {self.head_dim} "
                f"(hidden_size / num_heads), got {self.axes_dim}. Correct axes_dim."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_hidden(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    def to_json(self) -> dict[str, Any]:
        """A plain dict of JSON values; `from_json` restores an equal config."""
        return asdict(self) | {"axes_dim": list(self.axes_dim)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModalityForcingConfig:
        """From a plain dict. A missing key takes the released value; an unknown key is a ValueError."""
        if not isinstance(values, Mapping):
            raise ValueError(
                f"Expected the network config as an object of names and values, got {str(values)[:60]}. "
                "Correct the config."
            )
        values = {OTHER_NAMES.get(key, key): value for key, value in values.items()}
        unknown = sorted(set(values) - cls.known())
        if unknown:
            raise ValueError(
                f"Expected the keys {', '.join(sorted(cls.known()))} in the network config, got "
                f"{', '.join(unknown)} as well. Remove or rename them."
            )
        return cls(**values)

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any]) -> ModalityForcingConfig:
        """From another program's metadata: as `from_json`, but unknown keys are ignored."""
        return cls.from_json(
            {key: value for key, value in values.items() if OTHER_NAMES.get(key, key) in cls.known()}
        )

    @classmethod
    def known(cls) -> set[str]:
        return {field.name for field in fields(cls)}


KLEIN_9B = ModalityForcingConfig()

PRESETS: Mapping[str, ModalityForcingConfig] = MappingProxyType(
    {
        "klein_9b": KLEIN_9B,
        "klein_4b": replace(
            KLEIN_9B, context_in_dim=7680, hidden_size=3072, num_heads=24,
            num_double_blocks=5, num_single_blocks=20,
        ),
        "tiny": replace(
            KLEIN_9B, in_channels=32, context_in_dim=128, hidden_size=192, num_heads=6, axes_dim=(8, 8, 8, 8),
            num_double_blocks=1, num_single_blocks=5, num_depth_decoder_blocks=1, depth_head_kernel=3,
            infinite_sky=True,
        ),
    }
)  # fmt: skip


@dataclass(frozen=True)
class SamplingDefaults:
    """Default sampling settings of one kind of run."""

    steps: int
    guidance: float = 1.0
    log2_alpha: float | None = None  # None: both streams at the same t
    depth_guidance: float | None = None  # CFG scale of the depth stream; None: `guidance`


@dataclass(frozen=True)
class PipelineDefaults:
    """Per preset: the side of a square image in pixels, and the settings of each kind of run."""

    size: int
    joint: SamplingDefaults
    image_to_depth: SamplingDefaults
    depth_to_image: SamplingDefaults
    kept_depth: SamplingDefaults  # joint with known depth pixels: depth first, as the paper's trajectory


RELEASED_DEFAULTS = PipelineDefaults(
    size=512,
    joint=SamplingDefaults(50, 4.0, 5.0),
    image_to_depth=SamplingDefaults(50),
    depth_to_image=SamplingDefaults(50, 4.0),
    kept_depth=SamplingDefaults(50, 4.0, -5.0),
)

DEFAULTS: Mapping[str, PipelineDefaults] = MappingProxyType(
    {
        "klein_9b": RELEASED_DEFAULTS,
        "klein_4b": RELEASED_DEFAULTS,
        # a small network needs strong CFG to follow its prompt, and guided depth has steps at token borders:
        # docs/log.md
        "tiny": replace(
            RELEASED_DEFAULTS, size=128, joint=SamplingDefaults(50, 5.0, 5.0, depth_guidance=1.0)
        ),
    }
)


def find_preset(name: str) -> ModalityForcingConfig:
    """The preset of that name; a ValueError lists the presets."""
    if name not in PRESETS:
        raise ValueError(
            f"Expected one of the presets {', '.join(PRESETS)}, got {name!r}. Choose one of them."
        )
    return PRESETS[name]


def find_trained_size(config: ModalityForcingConfig) -> int | None:
    """The side in pixels of the images that the preset of this width was trained on; None for other
    networks.
    """
    names = [name for name, preset in PRESETS.items() if preset.hidden_size == config.hidden_size]
    return DEFAULTS[names[0]].size if names else None


def check_mode(mode: str) -> Mode:
    """`mode`, if it is valid; a ValueError lists the modes."""
    if mode not in MODES:
        raise ValueError(f"Expected one of the modes {', '.join(MODES)}, got {mode!r}. Choose one of them.")
    return mode  # type: ignore[return-value]
