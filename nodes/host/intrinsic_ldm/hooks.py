"""What changes the intrinsic rows on their way through core's layers: the intrinsic LoRA, and the image's LoRAs taken off again.

Both are forward hooks, set when a run's model is in place and removed when the run ends. The image rows' numbers are not touched: the
image's own LoRAs stay where core put them, in the weights, and the intrinsic rows get what these add subtracted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import comfy.lora
import comfy.model_management
import comfy.weight_adapter
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....models.intrinsic_ldm.attention import Coupling
from ....models.intrinsic_ldm.lora import LowRank, add_to_stream

NETWORK = "diffusion_model."
SHARE = "or switch share_image_loras on, which gives it to the intrinsic maps too"


@dataclass(frozen=True)
class Dense:
    """The change of a whole weight or bias, where it has no low rank."""

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
        return Dense(*(None if part is None else part.to(like) for part in (self.weight, self.bias)), self.module)


@dataclass(frozen=True)
class Change:
    """Something to add to the intrinsic rows of one module's output."""

    path: str
    delta: LowRank | Dense
    columns: slice = field(default_factory=lambda: slice(None))
    sign: float = 1.0


def install(network: nn.Module, changes: list[Change], coupling: Coupling) -> list:
    """Handles of the hooks, each with `remove`."""
    return [network.get_submodule(change.path).register_forward_hook(row_hook(change, coupling)) for change in changes]


def row_hook(change: Change, coupling: Coupling) -> Callable:
    placed: dict[tuple, LowRank | Dense] = {}

    def hook(module, args, out):
        if not coupling.is_active or "intrinsic" not in coupling.rows.streams:
            return
        rows = coupling.rows
        x, target = args[0], out
        if x.shape[0] != rows.count:  # PixArt lays all rows of its prompt attention end to end
            if x.shape[0] != 1 or x.dim() != 3 or x.shape[1] % rows.count:
                raise ValueError(
                    f"{change.path} works on {tuple(x.shape)}, which does not show its {rows.count} rows: take that LoRA out, {SHARE}."
                )
            x, target = (tensor.reshape(rows.count, -1, tensor.shape[-1]) for tensor in (x, out))
        key = (x.device, x.dtype)
        if key not in placed:
            placed[key] = change.delta.to(torch.empty(0, device=x.device, dtype=x.dtype))
        add_to_stream(target, x, placed[key], rows, "intrinsic", columns=change.columns, sign=change.sign)

    return hook


def image_lora_changes(patcher) -> list[Change]:
    """What takes the image branch's LoRAs (weight patches of the MODEL) off the intrinsic rows. Merged models stay: they are the base.

    Raises ValueError for a LoRA whose effect is no sum, or that is applied where it cannot be told from the base.
    """
    if "bypass_lora" in patcher.injections:
        raise ValueError(f"A LoRA arrived in bypass mode, which works on all rows alike: use Load LoRA instead, {SHARE}.")
    for key, wrappers in patcher.weight_wrapper_patches.items():
        if key.startswith(NETWORK):
            raise ValueError(
                f"{name_of(wrappers[-1])} rewrites {key} at each use, for all rows alike: take the node that put it there out, {SHARE}."
            )
    return [change for key, patches in patcher.patches.items() if key.startswith(NETWORK) for change in undo(patcher, key, patches)]


def name_of(function) -> str:
    """Where another pack's function is from, for an error."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"


def undo(patcher, key: str, patches: list[tuple]) -> list[Change]:
    """The changes that subtract a weight's LoRAs. A merge takes its share of all that came before it, so of these too."""
    path, _, kind = key.removeprefix(NETWORK).rpartition(".")
    module = patcher.model.diffusion_model.get_submodule(path)
    whole_merges = all(patch[2] == 1.0 or patch[3] is None for patch in patches)
    splits = isinstance(module, nn.Linear) and kind == "weight" and whole_merges
    changes: list[Change] = []
    dense: list[tuple] = []
    for patch in patches:
        strength, value, of_model, offset, function = patch
        if of_model != 1.0:
            changes = [replace(change, delta=replace(change.delta, scale=change.delta.scale * of_model)) for change in changes]
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
            raise ValueError(f"A LoRA changes {key}, a {type(module).__name__}, whose change is no sum: take that LoRA out, {SHARE}.")
        whole = comfy.lora.calculate_weight(dense, torch.zeros(getattr(module, kind).shape), key)
        changes.append(Change(path, Dense(whole, None, module) if kind == "weight" else Dense(None, whole, module), sign=-1.0))
    return changes


def is_merge(value) -> bool:
    """Another model's weight, as core's merging nodes give it, and not a LoRA's change."""
    return isinstance(value, list) or (isinstance(value, tuple) and value[0] not in ("diff", "set"))


def low_rank(value, strength: float) -> LowRank | None:
    """A plain LoRA's two matrices, or None where it is of another kind."""
    if not isinstance(value, comfy.weight_adapter.LoRAAdapter):
        return None
    up, down, alpha, middle, _, reshape = value.weights
    if middle is not None or reshape is not None or up.dim() != 2 or down.dim() != 2:
        return None
    return LowRank(down, up, strength * (1.0 if alpha is None else float(alpha) / down.shape[0]))


def check_additive(value, key: str) -> None:
    if isinstance(value, tuple):
        if value[0] == "set":
            raise ValueError(f"A LoRA sets {key} outright, and the maps cannot have back what was there: take that LoRA out, {SHARE}.")
        return
    name, weights = getattr(value, "name", type(value).__name__), getattr(value, "weights", ())
    scaled = name in ("lora", "loha", "lokr") and weights and torch.is_tensor(weights[4 if name == "lora" else -1])
    if name not in ("lora", "loha", "lokr") or scaled:
        raise ValueError(f"A {'DoRA' if scaled else name.upper()} changes {key}, and its effect is no sum: use an ordinary LoRA, {SHARE}.")
