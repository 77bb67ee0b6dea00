"""The intrinsic LoRA: reading files of the common key formats, and applying it to the intrinsic rows only.

A file is matched to a base model by the names and widths of its self-attention projections; no key is
ignored silently.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.text_files import read_text
from ..core.weights.files import check_finite, read_header, read_tensors
from .lora_scaling import ENTRY, Scaling, read_scaling
from .rows import Rows, Stream

# key suffixes of PEFT (with or without an adapter name), kohya and old diffusers: both matrices and alpha
ROLES = {
    "down": re.compile(r"\.(?:lora_A(?:\.[^.]+)?|lora_down|lora\.down)\.weight$"),
    "up": re.compile(r"\.(?:lora_B(?:\.[^.]+)?|lora_up|lora\.up)\.weight$"),
    "alpha": re.compile(r"\.alpha$"),
}
# key suffixes of other adapter types, and what they are
OTHERS = (
    (
        re.compile(r"\.(?:lora_magnitude_vector(?:\..+)?|dora_scale)$"),
        "a DoRA, which also rescales the weights",
    ),
    (
        re.compile(r"\.hada_w[12](?:_[ab])?$|\.hada_t[12]$"),
        "a LoHa, a Hadamard product of two low-rank matrices",
    ),
    (re.compile(r"\.lokr_(?:w[12](?:_[ab])?|t2)$"), "a LoKr, a Kronecker product"),
    (
        re.compile(r"\.lora_[AB](?:\.[^.]+)?\.bias$|\.(?:diff|diff_b|lora_mid\.weight)$"),
        "a LoRA with tensors that are no low-rank matrices",
    ),
)
ADAPTER_STEM, CONFIG_FILE = "adapter_model", "adapter_config.json"  # file names in a folder saved by PEFT
PREFIXES = re.compile(
    r"^(base_model\.model\.|unet\.|transformer\.|diffusion_model\.|module\.|_orig_mod\."
    r"|lora_unet_|lora_transformer_|lycoris_)*"
)


@dataclass(frozen=True)
class Projection:
    """A linear layer that may have a low-rank update: its widths, and its module paths in other programs."""

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
        out = F.linear(F.linear(x, self.down.to(x)), self.up.to(x))
        return out if self.scale == 1 else out * self.scale

    def to(self, like: Tensor) -> LowRank:
        return LowRank(self.down.to(like), self.up.to(like), self.scale)


ALL = slice(None)


def add_to_stream(
    out: Tensor,
    x: Tensor,
    delta,
    rows: Rows,
    stream: Stream,
    *,
    columns: slice = ALL,
    sign: float = 1.0,
) -> None:
    """Add delta(x) in place to the rows of one stream of out (rows, ..., outputs); no other row changes."""
    if stream in rows.streams:
        target = rows.select(out, stream)
        target = target if columns == ALL else target[..., columns]
        target.add_(delta(rows.select(x, stream)), alpha=sign)


def open_lora(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file, as `read_lora` takes them.

    PEFT writes the adapter config into a JSON file beside its adapter_model.safetensors, diffusers into the
    metadata.
    """
    metadata, beside = dict(read_header(path).metadata), Path(path).with_name(CONFIG_FILE)
    if Path(path).stem == ADAPTER_STEM and ENTRY not in metadata and beside.is_file():
        metadata[ENTRY] = read_text(beside)
    return read_tensors(path), metadata


def read_lora(
    tensors: Mapping[str, Tensor], projections: Mapping[str, Projection], *, base: str, name: str,
    metadata: Mapping[str, str] | None = None
) -> dict[str, LowRank]:  # fmt: skip
    """The low-rank updates of a file by projection; errors name the base model `base` and the file `name`.

    alpha comes from the file (an `alpha` tensor, or PEFT's adapter config in the metadata); without one it
    equals the rank (scale 1). With PEFT's use_rslora the scale is alpha / sqrt(rank).
    Raises ValueError for another base model, other layers, a missing matrix, NaN, or an unsupported setting.
    """
    known = {alias: path for path, projection in projections.items() for alias in (path, *projection.aliases)}
    known |= {alias.replace(".", "_"): path for alias, path in tuple(known.items())}
    matrices: dict[str, dict[str, Tensor]] = {}
    keys: dict[tuple[str, str], str] = {}
    names: dict[str, str] = {}  # module path -> its name in the file
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"Expected a tensor as {key!r} in the LoRA {name}, got {type(tensor).__name__}. Save it as "
                "safetensors."
            )
        module, role = split_name(str(key), name)
        path = known.get(module, known.get(module.removesuffix(".0")))
        if path is None:
            raise ValueError(
                f"Expected self-attention projections of {base} in the LoRA {name}, got {module}. Choose an "
                "intrinsic LoRA that was trained on this base (an ordinary LoRA goes through Load LoRA "
                "instead)."
            )
        if (path, role) in keys:
            raise ValueError(
                f"Expected one {role} of {path} in the LoRA {name}, got {keys[path, role]!r} and {key!r}. "
                "Keep the tensors of one adapter."
            )
        keys[path, role], names[path] = key, module
        matrices.setdefault(path, {})[role] = tensor
    if not matrices:
        raise ValueError(
            f"Expected low-rank matrices in the LoRA {name}, got no tensors. Choose an intrinsic LoRA "
            f"trained on {base}."
        )
    check_finite(tensors, f"the LoRA {name}")
    scaling = read_scaling(metadata, name)
    return {
        path: build_update((path, names[path]), tensors, projections[path], scaling, base)
        for path, tensors in matrices.items()
    }


def split_name(key: str, name: str) -> tuple[str, str]:
    """A key of a file as the module path and "down", "up" or "alpha"."""
    bare = PREFIXES.sub("", key)
    for role, ending in ROLES.items():
        match = ending.search(bare)
        if match:
            return bare[: match.start()], role
    other = next((f" (it is of {what})" for ending, what in OTHERS if ending.search(bare)), "")
    raise ValueError(
        f"Expected tensor names of PEFT's or kohya's LoRAs in {name}, got {key!r}{other}. Choose an "
        "intrinsic LoRA."
    )


def build_update(
    names: tuple[str, ...], tensors: dict[str, Tensor], projection: Projection, scaling: Scaling, base: str
) -> LowRank:
    """The low-rank update of one projection; `names` are its module paths, ours first."""
    path, name = names[0], scaling.name
    if not {"down", "up"} <= tensors.keys():
        missing = "down" if "down" not in tensors else "up"
        raise ValueError(
            f"Expected both matrices of {path} in the LoRA {name}, got none for {missing}. Save or download "
            "the file again."
        )
    down, up = (read_matrix(role, tensors[role], path, name) for role in ("down", "up"))
    if (
        down.shape[1] != projection.inputs
        or up.shape[0] != projection.outputs
        or down.shape[0] != up.shape[1]
    ):
        raise ValueError(
            f"Expected matrices (outputs, rank) x (rank, inputs) with {projection.outputs} outputs and "
            f"{projection.inputs} inputs for {path} of {base} in the LoRA {name}, got {tuple(up.shape)} x "
            f"{tuple(down.shape)}. Load the base that it was trained on, or the LoRA trained on this one."
        )
    rank = down.shape[0]
    if not rank:
        raise ValueError(
            f"Expected a rank of 1 or more for {path} in the LoRA {name}, got 0. Save it again, or leave "
            "that layer out."
        )
    return LowRank(
        down,
        up,
        scaling.scale(names, rank, read_alpha(tensors["alpha"], path, name) if "alpha" in tensors else None),
    )


def read_matrix(role: str, tensor: Tensor, path: str, name: str) -> Tensor:
    """A matrix, or a 1 x 1 convolution flattened to one.

    Integer dtypes are refused: their quantization scale is unknown here.
    """
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(
            f"Expected floating-point numbers in the {role} matrix of {path} in the LoRA {name}, got {kind}, "
            "whose quantization scale is not in the file. Use the LoRA that is not quantized."
        )
    if tensor.dim() < 2 or any(side != 1 for side in tensor.shape[2:]):
        raise ValueError(
            f"Expected a matrix (rank and width) as {role} of {path} in the LoRA {name}, got "
            f"{tuple(tensor.shape)}. Choose an intrinsic LoRA: one of convolutions belongs to other layers."
        )
    return tensor.flatten(1)


def read_alpha(tensor: Tensor, path: str, name: str) -> float:
    """A scalar above 0, of any numeric dtype."""
    value = float(tensor) if tensor.numel() == 1 and tensor.dtype != torch.bool else None
    if value is None or not 0 < value < math.inf:
        got = f"a tensor {tuple(tensor.shape)} of {tensor.dtype}" if value is None else value
        raise ValueError(
            f"Expected one number above 0 as alpha of {path} in the LoRA {name}, got {got}. Save the LoRA "
            "again."
        )
    return value
