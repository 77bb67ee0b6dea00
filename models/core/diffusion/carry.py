"""Two streams whose times differ by a constant odds ratio, carried as one ordinary flow latent.

The main stream is at noise level sigma. The second is at t, with t / (1 - t) = alpha * sigma / (1 - sigma),
alpha = 2^log2_alpha:

    t = alpha sigma / (1 + (alpha - 1) sigma)     flow.warp_time
    x = (1 - t) x0 + t eps                        what the network sees
    u = x sigma / t = (1 - sigma) x0 / alpha + sigma eps

So u is a flow latent at the main stream's own sigma whose clean end is x0 / alpha: any sampler that steps the
main stream steps u rightly too, noise and guidance included, and alpha * u is x0 at the end.
"""

from __future__ import annotations

from torch import Tensor

from .flow import match_dims


def to_carried(x0: Tensor, log2_alpha: float) -> Tensor:
    """A clean second stream as the sampler holds it."""
    return x0 / 2.0**log2_alpha


def from_carried(carried: Tensor, log2_alpha: float) -> Tensor:
    """The sampler's clean end as the second stream."""
    return carried * 2.0**log2_alpha


def release(carried: Tensor, sigma: Tensor, log2_alpha: float) -> Tensor:
    """What the network sees of u (b ...): the second stream at its own t.

    Sigma (b,); 0 means that the stream is clean.
    """
    alpha = 2.0**log2_alpha
    return carried * match_dims(alpha / (1 + (alpha - 1) * sigma), carried)


def carried_velocity(carried: Tensor, x0: Tensor, sigma: Tensor, log2_alpha: float) -> Tensor:
    """The velocity of u (b ...) towards a prediction x0: u - sigma * velocity is exactly x0 / alpha.

    Sigma (b,) above 0.
    """
    return (carried - to_carried(x0, log2_alpha)) / match_dims(sigma, carried)
