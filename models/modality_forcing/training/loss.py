"""The paper's loss: a noise level per stream, image velocity, velocity-weighted depth x0, distillation.

Conventions: t = 1 noise, t = 0 clean, x_t = (1 - t) x0 + t eps, velocity = eps - x0. All random numbers come
from `generator`: on the CPU, as a rule, so that a loss is the same function of its state on any machine.

A batch has
    latent (b, c, h, w)
    depth_net (b, 1, H, W), contracted depth of unit mean, and mask (b, 1, H, W), True = known
    tokens (b, n), or (b, k, n): k captions each, one of which is drawn; with empty_tokens (n,)
    or, instead of tokens, context (b, n, c) with empty_context (n, c)
    for alignment cells (b, k, s h, s w): k kinds of class ids, s times finer than the latent; -1 = unknown
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from ...core.diffusion.flow import add_noise
from ...core.losses import masked_mean, masked_mean_each, sum_terms
from ...core.training.alignment import Aligner, collect_activations
from ...core.training.captions import draw_captions
from ...core.training.settings import read_settings
from ..depth_code import contract, uncontract, unit_mean
from ..network import ModalityForcing
from .noise import draw_logit_normal, draw_plateau, uniform

Kind = Literal["modality_forcing", "text_to_image"]
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class LossSettings:
    """The `loss` part of a recipe. Defaults: the paper's; where it is silent, see the comments."""

    kind: Kind = "modality_forcing"  # "text_to_image" trains the image stream alone
    joint: float = 0.6  # probabilities of the modes; the three add up to 1
    image_to_depth: float = 0.2
    depth_to_image: float = 0.2
    shift_mu: float = 1.1  # of both logit-normals
    shift_sigma: float = 1.0
    t_min: float = 0.05  # lower bound on t in the depth weight 1/t^2; the released sampler has the same
    rgb_weight: float = 1.0
    depth_weight: float = 1.0
    # weight of the depth's gradient matching (ours, see gradient_loss): reduces seams between patches
    depth_gradient: float = 0.0
    depth_border: float = 0.0  # and of the same across the borders of patches alone, see border_loss
    distill_high: float = (
        1.0  # weight of the distillation at t_depth = 1 (not published: a third party's value)
    )
    distill_low: float = 0.1  # and at t_depth = 0
    caption_dropout: float = 0.1
    # share of images that lose known depth pixels, so that the network learns sparse depth (not published)
    sparse: float = 0.1
    sparse_keep: tuple[float, float] = (0.002, 0.5)  # the share of pixels these keep, log-uniform
    align: float = 0.0  # weight of the alignment loss (ours, see Aligner), for data with a class per cell
    align_block: int = 1  # index of the single block whose image tokens it reads

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparse_keep", tuple(self.sparse_keep))
        self._check("kind", self.kind in get_args(Kind), f"one of {', '.join(get_args(Kind))}")
        shares = (self.joint, self.image_to_depth, self.depth_to_image)
        if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError(
                "Expected shares that add up to 1 for the loss's joint, image_to_depth and depth_to_image, "
                f"got {shares}. Correct them in the recipe."
            )
        self._check(
            "shift_sigma",
            0 < self.shift_sigma <= math.sqrt(2),
            "above 0 and at most sqrt(2): beyond it the density has two modes",
        )
        for name in (
            "t_min",
            "rgb_weight",
            "depth_weight",
            "depth_gradient",
            "depth_border",
            "distill_high",
            "distill_low",
            "align",
            "align_block",
        ):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("t_min", self.t_min > 0, "above 0: the depth weight is 1/t^2")
        for name in ("caption_dropout", "sparse"):
            self._check(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        keep = self.sparse_keep
        self._check(
            "sparse_keep",
            len(keep) == 2 and 0 < keep[0] <= keep[1] <= 1,
            "two rising shares above 0, at most 1",
        )

    def _check(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise ValueError(
                f"Expected the loss's {name} to be {expected}, got {getattr(self, name)!r}. Correct {name} "
                "in the recipe."
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LossSettings:
        """From a recipe's `loss`; an unknown key is a ValueError."""
        return read_settings(cls, values, "recipe's loss")


class TrainedModel(nn.Module):
    """What is trained together: the network, and the tiny text encoder (else contexts are precomputed)."""

    def __init__(
        self, network: ModalityForcing, text_encoder: nn.Module | None = None, aligner: Aligner | None = None
    ):
        super().__init__()
        self.network, self.text_encoder, self.aligner = network, text_encoder, aligner

    def context(self, words: Tensor) -> Tensor:
        """Context (b, n, c) of token ids, or the precomputed context itself."""
        return self.text_encoder(words) if self.text_encoder is not None else words

    def aligned_block(self, number: int) -> nn.Module | None:
        """The single block whose activations the aligner reads; None without an aligner."""
        return None if self.aligner is None else self.network.single_blocks[number]


def align_loss(
    model: TrainedModel, batch: Batch, activations: list[Tensor], context: Tensor, settings: LossSettings
) -> dict[str, Tensor]:
    """The alignment term of the loss, if there is one."""
    if not activations:
        return {}
    text, (height, width) = context.shape[1], batch["latent"].shape[-2:]
    return {
        "align": settings.align
        * model.aligner(activations[0][:, text : text + height * width], batch["cells"])
    }


def loss(
    model: TrainedModel,
    batch: Batch,
    generator: Generator,
    *,
    settings: LossSettings,
    teacher: TrainedModel | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scalar loss and its terms. `teacher`: a frozen text-to-image network whose velocity is distilled."""
    words = draw_captions(batch, generator, settings.caption_dropout)
    if settings.kind == "text_to_image":
        return image_loss(model, batch, words, generator, settings)

    latent, device = batch["latent"], batch["latent"].device
    t_rgb, t_depth = (t.to(device) for t in draw_times(len(latent), generator, settings))
    known, target = drop_depth(batch["depth_net"], batch["mask"], generator, settings)
    rgb_noise, depth_noise = draw_like(latent, generator), draw_like(target, generator)
    rgb_t = add_noise(latent, rgb_noise, t_rgb)
    # noise replaces missing depth: unit Gaussian at every t, as at inference
    depth_t = torch.where(known, add_noise(target, depth_noise, t_depth), depth_noise)

    context = model.context(words)
    with collect_activations(model.aligned_block(settings.align_block)) as activations:
        velocity, x0 = model.network(rgb_t, depth_t, context, t_rgb, t_depth)
    parts = {
        "rgb": settings.rgb_weight * velocity_loss(velocity, rgb_noise - latent, t_rgb > 0),
        "depth": settings.depth_weight * depth_loss(x0, target, known, t_depth, settings.t_min),
        **align_loss(model, batch, activations, context, settings),
    }
    if settings.depth_gradient:
        parts["gradient"] = settings.depth_gradient * gradient_loss(x0, target, known, t_depth)
    if settings.depth_border:
        patch = model.network.config.depth_patch
        parts["border"] = settings.depth_border * border_loss(x0, target, known, t_depth, patch)
    if teacher is not None:
        with torch.no_grad():
            target = teacher.network.forward_image(rgb_t, teacher.context(words), t_rgb)
        weight = settings.distill_high * t_depth + settings.distill_low * (1 - t_depth)
        parts["distill"] = velocity_loss(velocity, target, t_rgb > 0, weight)
    return sum_terms(parts)


def image_loss(
    model: TrainedModel, batch: Batch, words: Tensor, generator: Generator, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """The text-to-image network alone, no depth tokens: the base that the depth stream is later added to."""
    latent = batch["latent"]
    t = draw_logit_normal(uniform(len(latent), generator), settings.shift_mu, settings.shift_sigma).to(
        latent.device
    )
    noise = draw_like(latent, generator)
    context = model.context(words)
    with collect_activations(model.aligned_block(settings.align_block)) as activations:
        velocity = model.network.forward_image(add_noise(latent, noise, t), context, t)
    value = settings.rgb_weight * velocity_loss(velocity, noise - latent, t > 0)
    return sum_terms({"rgb": value, **align_loss(model, batch, activations, context, settings)})


def velocity_loss(velocity: Tensor, target: Tensor, counts: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean square over the images whose stream is noisy; a clean stream has no loss."""
    return masked_mean((velocity.float() - target).square().flatten(1).mean(dim=1) * weight, counts)


def depth_loss(x0: Tensor, target: Tensor, known: Tensor, t: Tensor, t_min: float) -> Tensor:
    """||(g - x_t)/t - v||^2 over known pixels, as ((g - x0)/t)^2, which avoids cancellation."""
    error = (x0.float() - target) / t.clamp(min=t_min)[:, None, None, None]
    square, count = masked_mean_each(torch.where(known, error, 0.0).square(), known)
    return masked_mean(square, (t > 0) & (count > 0))


GRADIENT_STEPS = (1, 2, 4, 8)  # pixels between the two pixels of a difference; 8 is half a patch


def gradient_loss(x0: Tensor, target: Tensor, known: Tensor, t: Tensor) -> Tensor:
    """Mean |d(x0 - target)| over known neighbors to the right and below, summed over GRADIENT_STEPS; a
    scalar.

    x0, target and known (bool) are (b, 1, h, w) with sides above the longest step, t is (b,): samples with t
    = 0 (depth as input) do not count. The gradient matching of monocular depth (Li & Snavely 2018, MegaDepth,
    equation 4), in network space and without its logarithm. Without it, nothing in the loss makes neighboring
    patches continuous.
    """
    error, total = torch.where(known, x0.float() - target, 0.0), 0.0
    for step, dim in itertools.product(GRADIENT_STEPS, (-1, -2)):
        length = error.shape[dim] - step
        both = known.narrow(dim, 0, length) & known.narrow(dim, step, length)
        change = (error.narrow(dim, step, length) - error.narrow(dim, 0, length)).abs()
        mean, count = masked_mean_each(change, both)
        total = total + masked_mean(mean, (t > 0) & (count > 0))
    return total


def border_loss(x0: Tensor, target: Tensor, known: Tensor, t: Tensor, patch: int) -> Tensor:
    """Mean absolute change of the error from one patch's last pixel to the next one's first, (b, 1, h, w)."""
    error, total = torch.where(known, x0.float() - target, 0.0), 0.0
    for dim in (-1, -2):
        last = torch.arange(patch - 1, error.shape[dim] - 1, patch, device=error.device)
        both = known.index_select(dim, last) & known.index_select(dim, last + 1)
        change = (error.index_select(dim, last + 1) - error.index_select(dim, last)).abs()
        mean, count = masked_mean_each(change, both)
        total = total + masked_mean(mean, (t > 0) & (count > 0))
    return total


def draw_times(count: int, generator: Generator, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """(t_rgb, t_depth), each (b,) float32: drawn independently, or one of them 0 in the conditional modes."""
    mode, rgb, depth = (uniform(count, generator) for _ in range(3))
    t_rgb = draw_logit_normal(rgb, settings.shift_mu, settings.shift_sigma)
    t_depth = draw_plateau(depth, settings.shift_mu, settings.shift_sigma)
    image_given = (mode >= settings.joint) & (mode < settings.joint + settings.image_to_depth)
    depth_given = mode >= settings.joint + settings.image_to_depth
    return t_rgb.masked_fill(image_given, 0.0), t_depth.masked_fill(depth_given, 0.0)


def drop_depth(
    net: Tensor, mask: Tensor, generator: Generator, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """(known, target): some samples keep few depth pixels, renormalized to unit mean, as in sparse depth."""
    chosen, share = uniform(len(net), generator) < settings.sparse, uniform(len(net), generator)
    if generator.device.type == "cpu" and not chosen.any():  # a card is not waited for
        return mask, net
    low, high = (math.log(s) for s in settings.sparse_keep)
    keep = torch.exp(low + (high - low) * share).where(chosen, torch.ones_like(share))
    drawn = torch.rand(net.shape, generator=generator, device=generator.device)
    known = mask & (drawn < keep[:, None, None, None].float()).to(mask.device)
    finite = known & (net < 2)  # 2 is infinite depth, at any scale
    scaled = contract(unit_mean(uncontract(net, z_max=None), finite)[0])
    changed = chosen.to(net.device)[:, None, None, None] & finite
    return known, torch.where(changed, scaled, net)


def draw_like(x: Tensor, generator: Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
