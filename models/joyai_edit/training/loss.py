"""The flow-matching loss of an edit: the target's velocity, beside the clean source image.

Conventions: t = 1 noise, t = 0 clean, x_t = (1 - t) x0 + t eps, velocity = eps - x0. Every draw comes from
the generator given, on the CPU.

A batch has, all computed beforehand by `spatialweave joyai encode`:
    latent (b, 16, h, w)       the edited image, normalized as the network takes it
    reference (b, 16, h, w)    the source image
    context (b, n, d)          the encoder's states for source image and prompt, padded at the end
    context_tokens (b,)        how many of the n are the encoding's own
    prefix_tokens (b,)         how many come before the prompt; the encoder is causal, so that they do not
                               depend on it
    empty_tail (b, k, d)       the states that follow them for the empty prompt
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

STEPS = 1000  # the network's timesteps are t times this


@dataclass(frozen=True)
class EditLoss:
    """The `loss` settings of a recipe."""

    shift: float = 1.5  # of the noise levels, as in sampling; the release's own is not published
    caption_dropout: float = 0.1  # probability of the empty prompt, for CFG

    def __post_init__(self) -> None:
        if self.shift <= 0 or not 0 <= self.caption_dropout <= 1:
            raise ValueError(
                "Expected a shift above 0 and a caption_dropout from 0 to 1 in the recipe's loss, got shift "
                f"{self.shift} and caption_dropout {self.caption_dropout}. Correct them."
            )


def edit_loss(
    model: nn.Module, batch: Mapping[str, Tensor], generator: Generator, *, network: nn.Module,
    settings: EditLoss,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Mean squared error of the predicted velocity; `model` trains through hooks on `network`.

    Samples run one by one: their contexts differ in length, and the network has no mask for padding.
    """
    latent, reference = batch["latent"].float(), batch["reference"].float()
    count, device = len(latent), latent.device
    u = torch.rand(count, generator=generator)
    t = (settings.shift * u / (1 + (settings.shift - 1) * u)).to(device)
    noise = torch.randn(latent.shape, generator=generator).to(device)
    dropped = torch.rand(count, generator=generator) < settings.caption_dropout
    share = t[:, None, None, None]
    noisy = (1 - share) * latent + share * noise
    errors = []
    for index in range(count):
        context = find_context(batch, index, empty=bool(dropped[index]))
        velocity = predict(network, noisy[index], reference[index], t=t[index], context=context)
        errors.append(F.mse_loss(velocity, noise[index] - latent[index]))
    loss = torch.stack(errors).mean()
    return loss, {"velocity": loss.detach()}


def find_context(batch: Mapping[str, Tensor], index: int, *, empty: bool) -> Tensor:
    """(1, n, d) of one sample, for its own prompt or for the empty one."""
    context = batch["context"][index]
    if not empty:
        return context[: int(batch["context_tokens"][index])][None]
    prefix = context[: int(batch["prefix_tokens"][index])]
    return torch.cat([prefix, batch["empty_tail"][index]])[None]


def predict(network: nn.Module, noisy: Tensor, reference: Tensor, *, t: Tensor, context: Tensor) -> Tensor:
    """The velocity (c, h, w) at noise level t. The target is the last item, as in diffusers' pipeline."""
    dtype = network.proj_out.weight.dtype
    items = torch.stack([reference, noisy])[None, :, :, None].to(dtype)
    timestep = (STEPS * t).reshape(1)
    found = network(items, timestep, context.to(dtype), return_dict=False)[0]
    return found[0, -1, :, 0].float()
