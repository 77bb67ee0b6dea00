"""Optimization: parameter groups of AdamW and Muon, learning rate factors, averaged weights, optimizer state
by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from .recipe import Recipe

Parameters = dict[str, nn.Parameter]


def matches(name: str, prefix: str) -> bool:
    """Whether a parameter name begins with `prefix`, in which * stands for anything: double_blocks.*.img_"""
    return fnmatchcase(name, prefix + "*")


def choose_trainable(model: nn.Module, freeze: Iterable[str]) -> Parameters:
    """Freeze by prefix and return the rest by name.

    A prefix without a parameter is refused, since it would silently freeze nothing.
    """
    freeze, names = tuple(freeze), [name for name, _ in model.named_parameters()]
    check_prefixes(freeze, names, "freeze")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(matches(name, prefix) for prefix in freeze))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "Expected parameters left to train, got a recipe that freezes all of them "
            f"({', '.join(freeze)}). Freeze fewer."
        )
    return trainable


def check_prefixes(prefixes: Iterable[str], names: Iterable[str], key: str) -> None:
    names = list(names)
    for prefix in prefixes:
        if not any(matches(name, prefix) for name in names):
            known = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise ValueError(
                f"Expected prefixes of parameter names as {key} of the recipe, got {prefix!r}. Names begin "
                f"with {known}."
            )


def make_optimizer(parameters: Parameters, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, one group per (learning rate factor, weight decay), fused: one pass over the weights, also on
    CPUs.

    With Muon if the recipe has it.
    """
    check_prefixes(recipe.lr_scale, parameters, "lr_scale")
    check_prefixes(recipe.muon, parameters, "muon")
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        fitting = [prefix for prefix in recipe.lr_scale if matches(name, prefix)]
        scale = recipe.lr_scale[max(fitting, key=len)] if fitting else 1.0
        decay = recipe.weight_decay if parameter.ndim >= 2 else 0.0
        uses_muon = parameter.ndim == 2 and any(matches(name, prefix) for prefix in recipe.muon)
        groups.setdefault((uses_muon, scale, decay), []).append(parameter)
    adamw, muon = (
        [
            {"params": params, "scale": scale, "weight_decay": decay}
            for (uses_muon, scale, decay), params in groups.items()
            if uses_muon == flag
        ]
        for flag in (False, True)
    )
    settings = {"lr": recipe.lr, "betas": recipe.betas, "fused": True}
    return MuonAdamW(muon, adamw, **settings) if muon else torch.optim.AdamW(adamw, **settings)


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon (Jordan et al. 2024) for some matrices and AdamW for all else, as one optimizer with one
    learning rate: Muon's updates are scaled to AdamW's usual size (Liu et al. 2025, "Muon is scalable for LLM
    training").
    """

    def __init__(self, muon: list[dict], adamw: list[dict], *, lr: float, **settings):
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f"Expected torch 2.9 or later for the recipe's muon, got torch {torch.__version__}. Leave "
                "muon out, or update torch."
            )
        parts = [torch.optim.Muon(muon, lr=lr, adjust_lr_fn="match_rms_adamw")]
        parts += [torch.optim.AdamW(adamw, lr=lr, **settings)] if adamw else []
        super().__init__(
            [{**group, "part": i} for i, part in enumerate(parts) for group in part.param_groups], {}
        )
        self.parts = parts

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError("Expected no closure for MuonAdamW, got one. Call backward before step.")
        for i, part in enumerate(self.parts):
            # groups and state are stored here, where checkpoints and accelerate expect them; the parts only
            # compute
            part.param_groups, part.state = (
                [group for group in self.param_groups if group["part"] == i],
                self.state,
            )
            part.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>|<quantity>` -> tensor.

    Parameters that never had a gradient have none.
    """
    return {
        f"{name}|{quantity}": value
        for name, parameter in parameters.items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of `optimizer_tensors`."""
    for key, value in tensors.items():
        name, quantity = key.rsplit("|", 1)
        if name not in parameters:
            raise ValueError(
                f"Expected optimizer state of the trained parameters in the checkpoint, got {name!r}, which "
                "is frozen here. Use the freeze of the run that wrote it."
            )
        optimizer.state[parameters[name]][quantity] = value.to(parameters[name].device)


class AveragedWeights:
    """Exponential moving average of the trainable weights in float32, with a warm-up in which early weights
    have little effect.
    """

    def __init__(self, parameters: Parameters, decay: float):
        self.decay = decay
        self.parameters = parameters
        self.tensors = {name: p.detach().clone().float() for name, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step 0, 1, ...: average += (1 - decay) * (weights - average)."""
        if not self.tensors:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.tensors.values()), current, weight)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            self.tensors[name].copy_(value)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's whole state with averaged instead of trained weights, each in the model's dtype."""
        state = {name: value.detach() for name, value in model.state_dict().items()}
        return state | {name: value.to(state[name].dtype) for name, value in self.tensors.items()}
