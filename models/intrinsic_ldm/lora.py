"""The intrinsic LoRA: read from a file of any common naming, and added to the intrinsic rows only.

A file is matched to a base model by the names and widths of its self-attention projections; nothing in it is passed over silently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .rows import Rows, Stream

# PEFT's, kohya's and diffusers' old words for the two matrices
DOWN = ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight")
UP = ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight")
ALPHA = ("alpha",)
PREFIXES = re.compile(r"^(base_model\.model\.|unet\.|transformer\.|diffusion_model\.|lora_unet_|lora_transformer_|lycoris_)*")


@dataclass(frozen=True)
class Projection:
    """A linear layer that may have a low-rank part: its widths, and the names other programs know it by."""

    inputs: int
    outputs: int
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class LowRank:
    """x -> scale * up(down(x)); down (rank, inputs), up (outputs, rank)."""

    down: Tensor
    up: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down.to(x)), self.up.to(x)) * self.scale

    def to(self, like: Tensor) -> LowRank:
        return LowRank(self.down.to(like), self.up.to(like), self.scale)


def add_to_stream(out: Tensor, x: Tensor, delta, rows: Rows, stream: Stream, *, columns: slice = slice(None), sign: float = 1.0) -> None:
    """Add delta(x) to the rows of one stream of out (rows, ..., outputs), in place; the other stream's numbers are not touched."""
    if stream in rows.streams:
        target = rows.select(out, stream)[..., columns]
        target.add_(delta(rows.select(x, stream)), alpha=sign)


def read_lora(
    tensors: Mapping[str, Tensor], projections: Mapping[str, Projection], *, base: str, name: str, metadata: Mapping[str, str] | None = None
) -> dict[str, LowRank]:  # fmt: skip
    """The low-rank parts of a file, by projection. `base` and `name` are words for errors: "SD2.1" and the file's name.

    alpha comes from the file (`alpha` beside the matrices, or PEFT's adapter settings in the metadata), else it is the rank, scale 1;
    with PEFT's use_rslora the scale is alpha over the rank's root.
    Raises ValueError for a file of another base, of other layers, or incomplete.
    """
    known = {alias: path for path, projection in projections.items() for alias in (path, *projection.aliases)}
    known |= {alias.replace(".", "_"): path for alias, path in tuple(known.items())}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, part = split_name(key, name)
        path = known.get(module, known.get(module.removesuffix(".0")))
        if path is None:
            raise ValueError(
                f"The LoRA {name} changes {module}, which is no self-attention projection of {base}: choose an intrinsic LoRA that was "
                "trained on this base (an ordinary LoRA goes through Load LoRA instead)."
            )
        parts.setdefault(path, {})[part] = tensor
    if not parts:
        raise ValueError(f"The LoRA {name} is empty; choose an intrinsic LoRA trained on {base}.")
    scaling = read_scaling(metadata)
    return {path: build(path, found, projections[path], scaling, base, name) for path, found in parts.items()}


def split_name(key: str, name: str) -> tuple[str, str]:
    """A file's key as the module's path and "down", "up" or "alpha"."""
    bare = PREFIXES.sub("", key)
    for part, endings in (("down", DOWN), ("up", UP), ("alpha", ALPHA)):
        for ending in endings:
            if bare.endswith("." + ending):
                return bare[: -len(ending) - 1], part
    raise ValueError(f"The file {name} holds {key!r}, which belongs to no LoRA of PEFT's or kohya's naming: choose an intrinsic LoRA.")


def build(path: str, found: dict[str, Tensor], projection: Projection, scaling: Scaling, base: str, name: str) -> LowRank:
    if not {"down", "up"} <= found.keys():
        missing = "down" if "down" not in found else "up"
        raise ValueError(f"The LoRA {name} lacks the {missing} matrix of {path}: the file is incomplete; save or download it again.")
    down, up = (found[part].flatten(1) if found[part].dim() > 2 else found[part] for part in ("down", "up"))
    if down.shape[1] != projection.inputs or up.shape[0] != projection.outputs or down.shape[0] != up.shape[1]:
        raise ValueError(
            f"The LoRA {name} has matrices {tuple(up.shape)} x {tuple(down.shape)} for {path}, but {base} has {projection.outputs} x "
            f"{projection.inputs} there: it was trained on another base; load that one, or the LoRA made for this one."
        )
    rank = down.shape[0]
    return LowRank(down, up, scaling.scale(path, rank, float(found["alpha"]) if "alpha" in found else None))


@dataclass(frozen=True)
class Scaling:
    """How strongly a file's matrices count: PEFT's alphas by module path ("" for all the others), over the rank or its root (rsLoRA)."""

    alphas: Mapping[str, float]
    by_root: bool = False

    def scale(self, path: str, rank: int, alpha: float | None) -> float:
        """`alpha` is what lies beside the matrices, if anything does."""
        if alpha is None:
            alpha = self.alphas.get(path, self.alphas.get("", rank))
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def read_scaling(metadata: Mapping[str, str] | None) -> Scaling:
    """PEFT's adapter settings as diffusers writes them into a safetensors header."""
    text = (metadata or {}).get("lora_adapter_metadata")
    if not text:
        return Scaling({})
    settings = {key.rpartition(".")[2]: value for key, value in json.loads(text).items()}
    alphas = {path: float(value) for path, value in (settings.get("alpha_pattern") or {}).items()}
    alphas |= {"": float(settings["lora_alpha"])} if settings.get("lora_alpha") is not None else {}
    return Scaling(alphas, bool(settings.get("use_rslora")))
