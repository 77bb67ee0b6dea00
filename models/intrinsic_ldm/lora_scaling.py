"""The scale of a LoRA's matrices: PEFT's adapter config, as diffusers writes it into a safetensors header.

A key of `alpha_pattern` or `rank_pattern` is a regular expression that must match the end of a module path,
starting at a dot or at the beginning of the path; the first match applies. Settings under which the same
matrices give another weight update are refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.text_files import parse_json

ENTRY = "lora_adapter_metadata"  # metadata key in the header
# prefixes of the network's settings; the first one present applies
NETWORKS = ("unet", "transformer", "diffusion_model", "", "base_model.model")
# other components of a pipeline: their tensors are not read here
OTHER_COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# settings that must be off, false or empty
UNSUPPORTED = (
    "use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora", "layer_replication",
    "modules_to_save", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
# values of init_lora_weights that modify the base weights
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Scaling:
    """Scaling settings of one file, called `name` in errors.

    Without settings the scale is alpha / rank, or 1 without an alpha.
    """

    name: str
    alpha: float | None = None
    rank: int | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)  # pattern -> alpha
    ranks: Mapping[str, int] = field(default_factory=dict)  # pattern -> rank
    by_root: bool = False  # rsLoRA: alpha / sqrt(rank)

    def scale(self, names: tuple[str, ...], rank: int, beside: float | None) -> float:
        """The scale of a module's matrices, by its module paths `names` and their `rank`.

        `beside` is the module's alpha tensor, if the file has one.
        """
        path, stated = names[0], match_pattern(self.ranks, names, self.rank)
        if stated is not None and stated != rank:
            raise ValueError(
                f"Expected rank {stated} for {path} in the LoRA {self.name}, as its settings say, got "
                f"{rank}. {AGAIN}"
            )
        alpha = match_pattern(self.alphas, names, self.alpha)
        # 1 percent: one of the two may have been stored in bfloat16
        if None not in (alpha, beside) and not math.isclose(alpha, beside, rel_tol=1e-2):
            raise ValueError(
                f"Expected one alpha for {path} in the LoRA {self.name}, got {beside:g} beside the matrices "
                f"and {alpha:g} in its settings. {AGAIN}"
            )
        used = beside if beside is not None else alpha if alpha is not None else rank
        return used / (math.sqrt(rank) if self.by_root else rank)


LARGEST = 1e6  # upper limit of a rank and of an alpha
AGAIN = "Save the LoRA again with the settings that it was trained with."


def match_pattern(patterns: Mapping[str, Any], names: tuple[str, ...], otherwise: Any) -> Any:
    """The value of the first pattern that matches the end of one of the module paths."""
    return next(
        (value for pattern, value in patterns.items() if any(matches_path(pattern, name) for name in names)),
        otherwise,
    )


def matches_path(pattern: str, path: str) -> bool:
    return pattern == path or re.match(rf"(.*\.)?({pattern})$", path) is not None


def read_scaling(metadata: Mapping[str, str] | None, name: str) -> Scaling:
    """From a file's metadata; ValueError names an unsupported setting."""
    text = (metadata or {}).get(ENTRY)
    if not text:
        return Scaling(name)
    source = f"the adapter settings ({ENTRY}) of the LoRA {name}"
    config = parse_json(text, source=source) if isinstance(text, str) else text
    if not isinstance(config, dict):
        raise ValueError(f"Expected a JSON object as {source}, got {brief(config)}. {AGAIN}")
    settings = choose_component(config, source)
    check_supported(settings, name)
    by_root = settings.get("use_rslora")
    if not isinstance(by_root, bool | None):
        raise ValueError(f"Expected true or false as use_rslora in {source}, got {brief(by_root)}. {AGAIN}")
    return Scaling(
        name, read_positive(settings, "lora_alpha", source), read_rank(settings, "r", source),
        read_patterns(settings, "alpha_pattern", read_positive, source),
        read_patterns(settings, "rank_pattern", read_rank, source),
        bool(by_root),
    )  # fmt: skip


def choose_component(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The network's settings among those of a pipeline's components, selected by prefix.

    As in diffusers, settings without a prefix apply only if there are none with the network's prefix.
    """
    by_component: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        component, _, setting = key.rpartition(".")
        by_component.setdefault(component, {})[setting] = value
    unknown = sorted(set(by_component) - {*NETWORKS, *OTHER_COMPONENTS})
    if unknown:
        raise ValueError(
            f"Expected settings of unet, transformer or text_encoder in {source}, got {brief(unknown[0])}. "
            f"{AGAIN}"
        )
    present = [name for name in NETWORKS if name in by_component]
    named = [name for name in present if name in NETWORKS[:3]]
    if any(by_component[name] != by_component[named[0]] for name in named):
        raise ValueError(
            f"Expected the settings of one network in {source}, got those of {' and '.join(named)}. {AGAIN}"
        )
    return by_component[present[0]] if present else {}


def check_supported(settings: Mapping[str, Any], name: str) -> None:
    faults = [key for key in UNSUPPORTED if settings.get(key)]
    faults += ["bias"] if settings.get("bias") not in (None, "none", False) else []
    faults += ["peft_type"] if settings.get("peft_type") not in (None, "LORA") else []
    start = settings.get("init_lora_weights")
    faults += (
        ["init_lora_weights"] if isinstance(start, str) and start.lower().startswith(CHANGED_BASES) else []
    )
    if faults:
        key = faults[0]
        raise ValueError(
            f"Expected a plain LoRA in {name}, got one with {key} = {brief(settings[key])}, which asks for "
            "another update than up(down(x)). Choose an intrinsic LoRA without it."
        )


def read_patterns(settings: Mapping[str, Any], key: str, read: Any, source: str) -> dict[str, Any]:
    """Pattern -> number, in the order of the file."""
    patterns = settings.get(key)
    if patterns is None:
        return {}
    if not isinstance(patterns, dict):
        raise ValueError(f"Expected an object as {key} in {source}, got {brief(patterns)}. {AGAIN}")
    for pattern in patterns:
        try:
            matches_path(pattern, "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"Expected regular expressions in {key} in {source}, got {brief(pattern)} ({error}). {AGAIN}"
            ) from error
        if patterns[pattern] is None:
            raise ValueError(
                f"Expected a number for {brief(pattern)} in {key} in {source}, got null. {AGAIN}"
            )
    return {pattern: read(patterns, pattern, f"{key} in {source}") for pattern in patterns}


def read_positive(settings: Mapping[str, Any], key: str, source: str) -> float | None:
    """A number above 0; None if not set."""
    value = settings.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise ValueError(
            f"Expected a number above 0 for {brief(key)} in {source}, got {brief(value)[:80]}. {AGAIN}"
        )
    return float(value)


def read_rank(settings: Mapping[str, Any], key: str, source: str) -> int | None:
    """An integer above 0; None if not set."""
    value = read_positive(settings, key, source)
    if value is not None and value != int(value):
        raise ValueError(f"Expected a whole number for {brief(key)} in {source}, got {brief(value)}. {AGAIN}")
    return None if value is None else int(value)


def brief(value: Any) -> str:
    """A value for an error message, at most 60 characters."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 60 else text[:57] + "...") if isinstance(value, str) else text[:60]
