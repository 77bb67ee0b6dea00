"""The intrinsic VAE: the base model's KL autoencoder with room for four maps where it had an image.

Depth, normals, segmentation and line art lie side by side as eight channels in [-1, 1] and share one latent of the base's own shape. Here
is what is pure: the channels, the first weights, masking, the losses and the latent's scale; the network is the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.losses import masked_mean
from .config import CHANNELS, MAPS

MISSING = 0.0  # what an absent map reads; training zeroes each map with DROP for the network to know it
DROP = 0.1
FIRST, LAST = "encoder.conv_in", "decoder.conv_out"


def map_slices() -> dict[str, slice]:
    """Each map's channels."""
    found, start = {}, 0
    for name, width in MAPS.items():
        found[name] = slice(start, start + width)
        start += width
    return found


def stack_maps(maps: Mapping[str, Tensor | None]) -> Tensor:
    """Maps (b, channels, h, w) in [-1, 1] as (b, 8, h, w); a map that is None or left out is missing.

    Raises ValueError for no map at all, an unknown one, or shapes that do not fit.
    """
    given = {name: tensor for name, tensor in maps.items() if tensor is not None}
    unknown = sorted(set(given) - set(MAPS))
    if unknown or not given:
        what = f"A map called {unknown[0]!r}" if unknown else "No map"
        raise ValueError(f"{what} arrived; give one or more of {', '.join(MAPS)}.")
    size = {(tensor.shape[0], *tensor.shape[2:]) for tensor in given.values()}
    for name, tensor in given.items():
        if tensor.dim() != 4 or tensor.shape[1] != MAPS[name] or len(size) > 1:
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in given.items())
            raise ValueError(
                f"Maps of {shapes} arrived; give {name} as (batch, {MAPS[name]}, h, w), all of one batch and "
                "size."
            )
    like = next(iter(given.values()))
    parts = [
        given.get(name, like.new_full((len(like), width, *like.shape[2:]), MISSING))
        for name, width in MAPS.items()
    ]
    return torch.cat(parts, dim=1)


def split_maps(stacked: Tensor) -> dict[str, Tensor]:
    """(b, 8, h, w) as one view for each map."""
    if stacked.dim() != 4 or stacked.shape[1] != CHANNELS:
        raise ValueError(
            f"Maps {tuple(stacked.shape)} arrived, wanted (batch, {CHANNELS}, h, w) as `stack_maps` makes "
            "them."
        )
    return {name: stacked[:, channels] for name, channels in map_slices().items()}


def drop_maps(stacked: Tensor, generator: torch.Generator, p: float = DROP) -> Tensor:
    """Each map of each example missing with probability p, by itself; the losses keep the whole as their target."""
    keep = torch.rand(len(stacked), len(MAPS), generator=generator).to(stacked.device) >= p
    widths = torch.tensor(list(MAPS.values()), device=stacked.device)
    return torch.where(keep.repeat_interleave(widths, dim=1)[:, :, None, None], stacked, MISSING)


def widen_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A base autoencoder's weights (3 channels, core's or diffusers' names) as the first weights of the intrinsic one.

    Three-channel maps start from the base's colour filters, one-channel maps from their mean, all divided by the number of maps on the way
    in, so that activations keep their range.
    """
    wide = dict(state)
    for name, width in ((FIRST, state[f"{FIRST}.weight"].shape[1]), (LAST, state[f"{LAST}.weight"].shape[0])):
        if width != 3:
            raise ValueError(
                f"The autoencoder's {name} has {width} channels, wanted the 3 of an image: give the base "
                "model's own VAE."
            )
    wide[f"{FIRST}.weight"] = _spread(state[f"{FIRST}.weight"], dim=1) / len(MAPS)
    for part in ("weight", "bias"):
        wide[f"{LAST}.{part}"] = _spread(state[f"{LAST}.{part}"], dim=0)
    return wide


def _spread(colours: Tensor, dim: int) -> Tensor:
    mean = colours.mean(dim=dim, keepdim=True)
    return torch.cat([colours if width == 3 else mean for width in MAPS.values()], dim=dim)


def vae_losses(
    out: Tensor, target: Tensor, mean: Tensor, log_variance: Tensor,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    *, present: Tensor | None = None, line_balance: float = 1.0, segment_balance: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Each map's L1, the normals' 1 - cosine, the posterior's divergence by 1e-6, and a perceptual distance of views of three channels.

    `present` (b, 4) is False where the target lacks a map, which then does not count; `perceptual` gives (b,). Pixels without a normal
    have no angle. A pixel of a line counts `line_balance` times one of the paper, one of a segment `segment_balance` times one of the
    ground: they cover so little that L1 alone is content with no line at all and with grey segments. Edge detectors meet that in the same
    way (Xie and Tu, Holistically-Nested Edge Detection, 2015, equation 2).
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
        losses["perceptual"] = sum(masked_mean(perceptual(*views[name]), has[name]) for name in MAPS) / len(
            MAPS
        )
    return losses


def latent_scale(latents: Tensor) -> float:
    """The factor that gives latents (n, c, h, w) the unit spread that the noise schedule counts on; SD's own is 0.18215."""
    return 1.0 / float(latents.float().std())
