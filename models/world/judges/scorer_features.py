"""Image fidelity in the eyes of a network of the world: Frechet distances between sets of pictures in the scorer's features.

Two kinds, because the scorer learned to overlook what blurs or tints a picture. Between two sets of 200 renderings the distance in the
deepest layer is .24; of pictures cut into squares that are shuffled 6.5, of tinted ones .68, but of blurred ones (sigma 1.5) the same. In
the first layer's means and deviations it is .10, .25, .91 and .20.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .scorer import Scorer

CONTENT, DETAIL = "content", "detail"
LAYERS = {CONTENT: "coarse", DETAIL: "stem"}  # the scorer's deepest layer, at 1/16 of the picture's sides, and its first, at 1/2


@torch.no_grad()
def pooled_features(scorer: Scorer, image: Tensor) -> dict[str, Tensor]:
    """Features of pictures b h w 3 in [0, 1] whose sides 16 divides: "content" b 56, each channel's mean over the picture, which tells what
    stands where; "detail" b 48, each channel's mean and standard deviation, which tell colours and sharpness."""
    heard: dict[str, Tensor] = {}
    listeners = [
        scorer.network.get_submodule(layer).register_forward_hook(lambda module, given, out, name=name: heard.update({name: out}))
        for name, layer in LAYERS.items()
    ]
    try:
        scorer.network(image.permute(0, 3, 1, 2).to(next(scorer.network.parameters()).device, torch.float32).clamp(0, 1))
    finally:
        for listener in listeners:
            listener.remove()
    heard = {name: out.float().cpu().flatten(2) for name, out in heard.items()}
    return {CONTENT: heard[CONTENT].mean(2), DETAIL: torch.cat([heard[DETAIL].mean(2), heard[DETAIL].std(2)], 1)}


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of the Gaussians with the means and covariances of two sets of features n d."""
    if min(len(first), len(second)) < 2:
        raise ValueError(f"Sets of {len(first)} and {len(second)} pictures arrived; a Frechet distance is between sets of at least 2.")
    means = [features.double().mean(0) for features in (first, second)]
    spreads = [features.double().T.cov() for features in (first, second)]
    root = _square_root(spreads[0])
    # the eigenvalues of C1 C2 are those of C1^1/2 C2 C1^1/2, which is symmetric
    cross = torch.linalg.eigvalsh(root @ spreads[1] @ root).clamp_min(0).sqrt().sum()
    distance = (means[0] - means[1]).square().sum() + spreads[0].trace() + spreads[1].trace() - 2 * cross
    return max(0.0, float(distance))


def _square_root(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T
