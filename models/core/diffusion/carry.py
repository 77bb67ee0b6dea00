"""Two streams whose timesteps differ by a constant odds ratio, stepped as one ordinary flow latent.

The main stream is at noise level sigma. The second is at t, with t / (1 - t) = alpha * sigma / (1 - sigma),
alpha = 2^log2_alpha:

    t = alpha sigma / (1 + (alpha - 1) sigma)     flow.warp_time
    x = (1 - t) x0 + t eps                        input of the network
    u = x sigma / t = (1 - sigma) x0 / alpha + sigma eps

So u is a flow latent at the main stream's own sigma whose clean end is x0 / alpha: any sampler that steps the
main stream steps u correctly as well, noise and CFG included, and alpha * u is x0 at the end.
"""

from __future__ import annotations

from torch import Tensor

from .flow import match_dims


def to_carried(x0: Tensor, log2_alpha: float) -> Tensor:
    """A clean second stream as a carried latent."""
    return x0 / 2.0**log2_alpha


def from_carried(carried: Tensor, log2_alpha: float) -> Tensor:
    """The second stream of the sampler's result, a carried latent."""
    return carried * 2.0**log2_alpha


def release(carried: Tensor, sigma: Tensor, log2_alpha: float) -> Tensor:
    """The second stream at its own t, as the network takes it, from u (b, ...). sigma (b,); 0 means clean."""
    alpha = 2.0**log2_alpha
    return carried * match_dims(alpha / (1 + (alpha - 1) * sigma), carried)


def carried_velocity(carried: Tensor, x0: Tensor, sigma: Tensor, log2_alpha: float) -> Tensor:
    """Velocity of u (b, ...) for a prediction x0: u - sigma velocity = x0 / alpha. sigma (b,) above 0."""
    return (carried - to_carried(x0, log2_alpha)) / match_dims(sigma, carried)
