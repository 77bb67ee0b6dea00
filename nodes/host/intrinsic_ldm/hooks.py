"""Forward hooks on core's layers that change the outputs of the intrinsic rows only.

One kind adds the intrinsic LoRA, the other subtracts the LoRAs of the image branch. Both are registered once
core has loaded the run's model and removed when the run ends. The image rows are unchanged: core keeps the
image's LoRAs patched into the weights, and their contribution is subtracted from the intrinsic rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import comfy.lora
import comfy.model_management
import comfy.weight_adapter
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ....models.intrinsic_ldm.attention import Coupling
from ....models.intrinsic_ldm.lora import LowRank, add_to_stream

NETWORK = "diffusion_model."
SHARE = "or switch share_image_loras on, which gives it to the intrinsic maps too"


@dataclass(frozen=True)
class Dense:
    """A full-rank change of the weight or bias of a linear or convolution layer."""

    weight: Tensor | None
    bias: Tensor | None
    module: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self.module, nn.Conv2d):
            conv, rows = self.module, x.flatten(0, -4)
            if self.weight is None:
                return self.bias.view(-1, 1, 1)
            out = F.conv2d(rows, self.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            return out.unflatten(0, x.shape[:-3])
        return self.bias if self.weight is None else F.linear(x, self.weight)

    def to(self, like: Tensor) -> Dense:
        return Dense(
            *(None if tensor is None else tensor.to(like) for tensor in (self.weight, self.bias)), self.module
        )


@dataclass(frozen=True)
class Change:
    """A change added to the intrinsic rows of one module's output, on some of its output columns."""

    path: str
    delta: LowRank | Dense
    columns: slice = field(default_factory=lambda: slice(None))
    sign: float = 1.0


def install(network: nn.Module, changes: list[Change], coupling: Coupling) -> list:
    """Register the hooks; returns their handles, each with `remove`."""
    return [
        network.get_submodule(change.path).register_forward_hook(row_hook(change, coupling))
        for change in changes
    ]


def row_hook(change: Change, coupling: Coupling) -> Callable:
    by_device: dict[tuple, LowRank | Dense] = {}  # the change by device and dtype

    def hook(module, args, out):
        if not coupling.is_active or "intrinsic" not in coupling.rows.streams:
            return
        rows = coupling.rows
        x, target = args[0], out
        if x.shape[0] != rows.count:  # PixArt flattens its cross-attention to (1, rows * n, c)
            if x.shape[0] != 1 or x.dim() != 3 or x.shape[1] % rows.count:
                raise ValueError(
                    f"Expected {rows.count} rows in the input of {change.path}, got {tuple(x.shape)}. Remove "
                    f"the LoRA of this layer, {SHARE}."
                )
            x, target = (rearrange(each, "1 (row n) c -> row n c", row=rows.count) for each in (x, out))
        key = (x.device, x.dtype)
        if key not in by_device:
            by_device[key] = change.delta.to(torch.empty(0, device=x.device, dtype=x.dtype))
        add_to_stream(target, x, by_device[key], rows, "intrinsic", columns=change.columns, sign=change.sign)

    return hook


def image_lora_changes(patcher) -> list[Change]:
    """Changes that subtract the image branch's LoRAs (weight patches of the MODEL) from the intrinsic rows.

    Merged models are not subtracted: they are part of the base. Raises ValueError for a LoRA whose effect is
    not additive, or that is applied in a way that cannot be separated from the base.
    """
    if "bypass_lora" in patcher.injections:
        raise ValueError(
            "Expected LoRAs for the image that are patched into the weights, got one in bypass mode, which "
            f"acts on all rows. Use Load LoRA instead, {SHARE}."
        )
    for key, wrappers in patcher.weight_wrapper_patches.items():
        if key.startswith(NETWORK):
            raise ValueError(
                f"Expected weights that no function changes at each use, got {name_of(wrappers[-1])} on "
                f"{key}, which acts on all rows. Remove the node that installed it, {SHARE}."
            )
    return [
        change
        for key, patches in patcher.patches.items()
        if key.startswith(NETWORK)
        for change in undo(patcher, key, patches)
    ]


def name_of(function) -> str:
    """Module path and qualified name of another pack's function, for an error message."""
    return (
        f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
    )


def undo(patcher, key: str, patches: list[tuple]) -> list[Change]:
    """The changes that subtract the LoRAs of one weight.

    A merge scales everything patched before it by its model strength, so earlier LoRAs are scaled too.
    """
    path, _, kind = key.removeprefix(NETWORK).rpartition(".")
    module = patcher.model.diffusion_model.get_submodule(path)
    whole_merges = all(patch[2] == 1.0 or patch[3] is None for patch in patches)
    splits = isinstance(module, nn.Linear) and kind == "weight" and whole_merges
    changes: list[Change] = []
    dense: list[tuple] = []
    for patch in patches:
        strength, value, of_model, offset, function = patch
        if of_model != 1.0:
            changes = [
                replace(change, delta=replace(change.delta, scale=change.delta.scale * of_model))
                for change in changes
            ]
            dense.append((0.0, ("diff", (torch.zeros(1),)), of_model, offset, None))
        if is_merge(value):
            continue
        check_additive(value, key)
        low = low_rank(value, strength) if splits and function is None else None
        if low is None:
            dense.append((strength, value, 1.0, offset, function))
        else:
            columns = slice(None) if offset is None else slice(offset[1], offset[1] + offset[2])
            changes.append(Change(path, low, columns, sign=-1.0))
    if any(strength for strength, *_ in dense):
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ValueError(
                "Expected LoRAs for the image that change linear or convolution layers, got one for "
                f"{key}, a {type(module).__name__}. Remove that LoRA, {SHARE}."
            )
        total = comfy.lora.calculate_weight(dense, torch.zeros(getattr(module, kind).shape), key)
        delta = Dense(total, None, module) if kind == "weight" else Dense(None, total, module)
        changes.append(Change(path, delta, sign=-1.0))
    return changes


def is_merge(value) -> bool:
    """Whether a patch is another model's weight from core's merging nodes, not a LoRA."""
    return isinstance(value, list) or (isinstance(value, tuple) and value[0] not in ("diff", "set"))


def low_rank(value, strength: float) -> LowRank | None:
    """The two matrices of a plain linear LoRA; None for every other kind of adapter."""
    if not isinstance(value, comfy.weight_adapter.LoRAAdapter):
        return None
    up, down, alpha, middle, _, reshape = value.weights
    if middle is not None or reshape is not None or up.dim() != 2 or down.dim() != 2:
        return None
    return LowRank(down, up, strength * (1.0 if alpha is None else float(alpha) / down.shape[0]))


def check_additive(value, key: str) -> None:
    if isinstance(value, tuple):
        if value[0] == "set":
            raise ValueError(
                f"Expected LoRAs for the image that add to the weights, got one that replaces {key}. Remove "
                f"that LoRA, {SHARE}."
            )
        return
    name, weights = getattr(value, "name", type(value).__name__), getattr(value, "weights", ())
    scaled = (
        name in ("lora", "loha", "lokr") and weights and torch.is_tensor(weights[4 if name == "lora" else -1])
    )
    if name not in ("lora", "loha", "lokr") or scaled:
        raise ValueError(
            "Expected LoRAs for the image that add to the weights, got a "
            f"{'DoRA' if scaled else name.upper()} on {key}. Use an ordinary LoRA, {SHARE}."
        )
