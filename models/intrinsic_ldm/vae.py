"""The intrinsic VAE: the base model's KL autoencoder with the channels of four maps in place of RGB.

Depth, normals, segmentation and line art are concatenated to eight channels in [-1, 1] and share one latent
of the base model's shape. This file has the pure functions: channel layout, weight initialization, map
dropout, losses and latent scale; the network is the base model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.losses import masked_mean
from .config import CHANNELS, MAPS

MISSING = 0.0  # value of a missing map; training drops each map with probability DROP so that this is learned
DROP = 0.1
FIRST, LAST = "encoder.conv_in", "decoder.conv_out"


def map_slices() -> dict[str, slice]:
    """The channel range of each map."""
    slices, start = {}, 0
    for name, width in MAPS.items():
        slices[name] = slice(start, start + width)
        start += width
    return slices


def stack_maps(maps: Mapping[str, Tensor | None]) -> Tensor:
    """Maps (b, c, h, w) in [-1, 1] concatenated to (b, 8, h, w); a map that is None or left out is missing.

    Raises ValueError for an empty mapping, an unknown name, or shapes that do not agree.
    """
    present = {name: tensor for name, tensor in maps.items() if tensor is not None}
    unknown = sorted(set(present) - set(MAPS))
    if unknown or not present:
        got = f"one called {unknown[0]!r}" if unknown else "none"
        raise ValueError(f"Expected maps of {', '.join(MAPS)}, got {got}. Pass one or more of these.")
    size = {(tensor.shape[0], *tensor.shape[2:]) for tensor in present.values()}
    for name, tensor in present.items():
        if tensor.dim() != 4 or tensor.shape[1] != MAPS[name] or len(size) > 1:
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in present.items())
            raise ValueError(
                f"Expected {name} (b, {MAPS[name]}, h, w), and all maps of one batch and size, got {shapes}. "
                "Reshape them so."
            )
    like = next(iter(present.values()))
    channels = [
        present.get(name, like.new_full((len(like), width, *like.shape[2:]), MISSING))
        for name, width in MAPS.items()
    ]
    return torch.cat(channels, dim=1)


def split_maps(stacked: Tensor) -> dict[str, Tensor]:
    """(b, 8, h, w) as one view (b, c, h, w) per map."""
    if stacked.dim() != 4 or stacked.shape[1] != CHANNELS:
        raise ValueError(
            f"Expected maps (b, {CHANNELS}, h, w), as `stack_maps` lays them out, got "
            f"{tuple(stacked.shape)}. Pass such a tensor."
        )
    return {name: stacked[:, channels] for name, channels in map_slices().items()}


def drop_maps(stacked: Tensor, generator: torch.Generator, p: float = DROP) -> Tensor:
    """Set each map of each sample to MISSING independently with probability p; loss targets stay whole."""
    keep = torch.rand(len(stacked), len(MAPS), generator=generator).to(stacked.device) >= p
    widths = torch.tensor(list(MAPS.values()), device=stacked.device)
    return torch.where(keep.repeat_interleave(widths, dim=1)[:, :, None, None], stacked, MISSING)


def widen_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Initial weights of the intrinsic VAE from an RGB autoencoder with ComfyUI's or diffusers' names.

    Three-channel maps copy the RGB filters, one-channel maps their mean over the color channels. The input
    filters are divided by the number of maps, which keeps the range of the activations.
    """
    wide = dict(state)
    for name, width in ((FIRST, state[f"{FIRST}.weight"].shape[1]), (LAST, state[f"{LAST}.weight"].shape[0])):
        if width != 3:
            raise ValueError(
                f"Expected an image autoencoder with 3 channels in {name}, got {width}. Choose the base "
                "model's own VAE."
            )
    wide[f"{FIRST}.weight"] = _to_maps(state[f"{FIRST}.weight"], dim=1) / len(MAPS)
    for kind in ("weight", "bias"):
        wide[f"{LAST}.{kind}"] = _to_maps(state[f"{LAST}.{kind}"], dim=0)
    return wide


def _to_maps(colors: Tensor, dim: int) -> Tensor:
    """RGB filters, with 3 color channels along `dim`, to filters of the 8 channels of the maps."""
    mean = colors.mean(dim=dim, keepdim=True)
    return torch.cat([colors if width == 3 else mean for width in MAPS.values()], dim=dim)


def vae_losses(
    out: Tensor, target: Tensor, mean: Tensor, log_variance: Tensor,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    *, present: Tensor | None = None, line_balance: float = 1.0, segment_balance: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    """L1 per map, 1 - cosine of the normals, the KL term times 1e-6, and a perceptual distance per map.

    `present` (b, 4) is False where the target lacks a map, which is then excluded. `perceptual` takes two
    maps as (b, 3, h, w) and returns (b,). Pixels without a normal are excluded from the cosine term. A line
    pixel weighs `line_balance` times a paper pixel, a segment pixel `segment_balance` times a background
    pixel: they cover so little area that with plain L1 the lines vanish and the segments turn gray. The same
    class balancing as for edge detection (Xie and Tu, Holistically-Nested Edge Detection, 2015, equation 2).
    """
    present = (
        torch.ones(len(out), len(MAPS), dtype=torch.bool, device=out.device) if present is None else present
    )
    losses, outs, targets, has = {}, split_maps(out), split_maps(target), dict(zip(MAPS, present.unbind(1)))
    for name in MAPS:
        counts = torch.ones_like(targets[name])
        if name == "line":
            counts = counts + (line_balance - 1) * (targets[name] + 1) / 2
        elif name == "segmentation":
            counts = counts + (segment_balance - 1) * (targets[name] > -1).any(dim=1, keepdim=True)
        errors = (outs[name] - targets[name]).abs() * counts
        losses[name] = masked_mean(errors.flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1), has[name])
    known = (targets["normals"] != MISSING).any(dim=1) & has["normals"][:, None, None]
    losses["normals_angle"] = masked_mean(
        1 - F.cosine_similarity(outs["normals"], targets["normals"], dim=1), known
    )
    losses["divergence"] = (
        1e-6 * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
    )
    if perceptual is not None:
        views = {
            name: (outs[name].expand(-1, 3, -1, -1), targets[name].expand(-1, 3, -1, -1)) for name in MAPS
        }
        losses["perceptual"] = (
            sum(masked_mean(perceptual(*views[name]), has[name]) for name in MAPS) / len(MAPS)
        )  # fmt: skip
    return losses


def latent_scale(latents: Tensor) -> float:
    """The factor that scales latents (n, c, h, w) to unit standard deviation, as the noise schedule expects.

    SD's own is 0.18215.
    """
    return 1.0 / float(latents.float().std())
