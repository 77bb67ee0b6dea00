"""Features of the scorer's network for image fidelity, and the Frechet distance between sets of them.

There are two kinds, because the scorer has learned invariance to blur and tint. Between two sets of 200
renderings the distance in the deepest layer is .24; for images cut into shuffled squares 6.5, for tinted ones
.68, but for blurred ones (sigma 1.5) the same .24. With means and standard deviations of the first layer it
is .10, .25, .91 and .20.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .scorer import Scorer

CONTENT, DETAIL = "content", "detail"
# The scorer's deepest layer, at 1/16 of the image's sides, and its first, at 1/2.
LAYERS = {CONTENT: "coarse", DETAIL: "stem"}


@torch.no_grad()
def pooled_features(scorer: Scorer, image: Tensor) -> dict[str, Tensor]:
    """Features of images (b, h, w, 3) in [0, 1] with sides divisible by 16.

    content (b, 56): each channel's mean over the image, which encodes the layout
    detail (b, 48): each channel's mean and standard deviation, which encode colors and sharpness
    """
    activations: dict[str, Tensor] = {}
    network = scorer.network
    hooks = [
        network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, name=name: activations.update({name: output})
        )
        for name, layer in LAYERS.items()
    ]
    pixels = rearrange(image, "b h w c -> b c h w").to(next(network.parameters()).device, torch.float32)
    try:
        network(pixels.clamp(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    content, detail = (rearrange(activations[name].float().cpu(), "b c h w -> b c (h w)") for name in LAYERS)
    return {CONTENT: content.mean(2), DETAIL: torch.cat([detail.mean(2), detail.std(2)], 1)}


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (n, d).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2), with means m and covariances C.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"Expected at least 2 images in each set, got {len(first)} and {len(second)}. Add images."
        )
    means = [features.double().mean(0) for features in (first, second)]
    covariances = [features.double().T.cov() for features in (first, second)]
    root = _square_root(covariances[0])
    # the eigenvalues of C1 C2 are those of C1^1/2 C2 C1^1/2, which is symmetric
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    traces = [covariance.trace() for covariance in covariances]
    distance = (means[0] - means[1]).square().sum() + traces[0] + traces[1] - 2 * cross
    return max(0.0, float(distance))


def _square_root(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T
