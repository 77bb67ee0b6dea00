"""Sizes of the spatial transformer and the MLLM beside it; of a depth adapter and its latent. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

Code = Literal["log_iqr", "unit_mean"]
Invalid = Literal["zero", "channel"]
Pairing = Literal["uniform", "shallow", "deep"]
LARGEST = 2**12  # channels; a damaged file must not ask for the memory of more
WIDEST, DEEPEST = 2**16, 2**10  # any size of a spatial transformer, and its layers; likewise


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


IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as DINOv2 was trained
DEPTHS = ("mllm_layers", "layers", "encoder_depth", "queries_side", "encoder_table_side")
SIZES = (
    "mllm_width", "kv_heads", "head_dim", "width", "heads", "ffn_width", "patch", "encoder_width",
    "encoder_heads", "dpt_features",
)  # fmt: skip


@dataclass(frozen=True)
class SpatialTransformerConfig:
    """One spatial transformer. Defaults: the paper's, beside OmniGen2's Qwen2.5-VL-3B.

    Keys of both are concatenated, so the MLLM's `kv_heads` and `head_dim` are those of the spatial
    transformer, too.
    """

    mllm: str = "Qwen2.5-VL-3B"  # the language model that it was trained beside
    mllm_layers: int = 36  # M
    mllm_width: int = 2048
    kv_heads: int = 2
    head_dim: int = 128
    rope_theta: float = 1e6
    # frequencies of a head that turn by (time, row, column), as M-RoPE's; their sum is head_dim / 2
    mrope_section: tuple[int, ...] = (16, 24, 24)
    layers: int = 10  # L
    pairing: Pairing = "uniform"  # which layer of the MLLM each layer attends to
    width: int = 2048
    heads: int = 16  # of the queries
    ffn_width: int = 11008
    norm_eps: float = 1e-6
    queries_side: int = 37  # the learnable queries are a square grid; the longer side of any grid has this
    patch: int = 14  # pixels of a query's cell along each side
    # DINOv2 with registers, which sees the source image of an edit
    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    encoder_registers: int = 4
    encoder_table_side: int = 37
    dpt_features: int = 256
    dpt_out_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    dpt_layers: tuple[int, ...] = (1, 4, 6, 9)  # layers, from 0, that the depth head reads

    def __post_init__(self) -> None:
        for name in ("mrope_section", "dpt_out_channels", "dpt_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for names, most in ((SIZES, WIDEST), (DEPTHS, DEEPEST)):
            for name in names:
                _check_whole(name, getattr(self, name), 1, most)
        _check_whole("encoder_registers", self.encoder_registers, 0, DEEPEST)
        if not isinstance(self.mllm, str) or not self.mllm:
            raise ValueError(f"Expected mllm as a name, got {self.mllm!r}. Correct it.")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"Expected {name} as a finite number above 0, got {value!r}. Correct it.")
        if self.pairing not in get_args(Pairing):
            raise ValueError(
                f"Expected pairing as one of {', '.join(get_args(Pairing))}, got {self.pairing!r}. Choose "
                "one of these."
            )
        self._check_heads()
        self._check_dense()

    def _check_heads(self) -> None:
        if self.layers > self.mllm_layers:
            raise ValueError(
                f"Expected at most mllm_layers layers, {self.mllm_layers}, got {self.layers}. Each attends "
                "to one of them: lower layers."
            )
        for width, heads in (("heads", "kv_heads"), ("encoder_width", "encoder_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"Expected {width} as a multiple of {heads}, {getattr(self, heads)}, got "
                    f"{getattr(self, width)}. Change one of them."
                )
        section = self.mrope_section
        if len(section) != 3 or any(type(part) is not int or part < 0 for part in section) or (
            2 * sum(section) != self.head_dim
        ):  # fmt: skip
            raise ValueError(
                f"Expected mrope_section as three whole numbers whose sum is head_dim / 2, "
                f"{self.head_dim / 2:g}, got {section}. Change one of them."
            )

    def _check_dense(self) -> None:
        channels, layers = self.dpt_out_channels, self.dpt_layers
        if len(channels) != 4 or any(type(c) is not int or c % 4 or not 4 <= c <= WIDEST for c in channels):
            raise ValueError(
                f"Expected dpt_out_channels as four multiples of 4, got {channels}. Correct them."
            )
        if len(layers) != 4 or any(type(i) is not int or not 0 <= i < self.layers for i in layers):
            raise ValueError(
                f"Expected dpt_layers as four entries from 0 to {self.layers - 1} (layers), got {layers}. "
                "Correct them."
            )
        if self.dpt_features % 8:
            raise ValueError(
                f"Expected dpt_features as a multiple of 8, got {self.dpt_features}. Correct it."
            )

    @property
    def pairs(self) -> tuple[int, ...]:
        """For each layer the layer of the MLLM, from 0, whose keys and values it attends to."""
        if self.pairing == "uniform":
            return tuple(i * self.mllm_layers // self.layers for i in range(self.layers))
        first = 0 if self.pairing == "shallow" else self.mllm_layers - self.layers
        return tuple(range(first, first + self.layers))

    @property
    def described(self) -> str:
        """The MLLM it is for, in words of a message."""
        return (
            f"{self.mllm} ({self.mllm_layers} layers of width {self.mllm_width}, {self.kv_heads} key heads "
            f"of {self.head_dim})"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict of JSON values; `from_json` restores an equal config."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SpatialTransformerConfig:
        """From a plain dict with every key; a missing or unknown one is refused by name."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            odd = sorted(names ^ set(values)) if isinstance(values, Mapping) else str(values)[:60]
            raise ValueError(
                f"Expected the spatial transformer's config with {len(names)} keys, got others: {odd}. "
                "Correct it."
            )
        return cls(**values)


@dataclass(frozen=True)
class LanguageSizes:
    """The tiny system's language model, a Qwen2. Names are those of transformers and of ComfyUI."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float

    def __post_init__(self) -> None:
        for field in fields(self)[:7]:
            most = DEEPEST if field.name == "num_hidden_layers" else WIDEST
            _check_whole(field.name, getattr(self, field.name), 1, most)
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"Expected {name} as a finite number above 0, got {value!r}. Correct it.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"Expected num_attention_heads as a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}, got {self.num_attention_heads}. Change one of them."
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict of JSON values; `from_json` restores equal sizes."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LanguageSizes:
        """From a plain dict with every key; a missing or unknown one is refused by name."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            found = sorted(values) if isinstance(values, Mapping) else str(values)[:60]
            raise ValueError(f"Expected sizes with {sorted(names)}, got {found}. Correct them.")
        return cls(**values)


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            f"Expected {name} as a whole number from {least} to {most}, got {str(value)[:80]}. Correct it."
        )


TRANSFORMER_PRESETS: Mapping[str, SpatialTransformerConfig] = MappingProxyType(
    {
        "omnigen2": SpatialTransformerConfig(),
        # ComfyUI's language models have heads of 128 channels, however narrow they are
        "tiny": SpatialTransformerConfig(
            mllm="SpatialWeave tiny", mllm_layers=6, mllm_width=128, kv_heads=1, layers=4, width=128,
            heads=2, ffn_width=256, queries_side=8, encoder_width=64, encoder_depth=2, encoder_heads=2,
            encoder_registers=1, encoder_table_side=8, dpt_features=32, dpt_out_channels=(32, 48, 64, 64),
            dpt_layers=(0, 1, 2, 3),
        ),
    }
)  # fmt: skip


def find_transformer_preset(name: str) -> SpatialTransformerConfig:
    """The spatial transformer of that name; a ValueError names the known ones."""
    if name not in TRANSFORMER_PRESETS:
        raise ValueError(
            f"Expected a preset from {', '.join(TRANSFORMER_PRESETS)}, got {name!r}. Choose one of these."
        )
    return TRANSFORMER_PRESETS[name]
