"""What a pipeline needs from outside: it takes these as arguments and imports none of them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ImageCodec(Protocol):
    """Images to latents and back. Latents are normalized: the network expects about unit variance."""

    def encode(self, image: Tensor) -> Tensor:
        """image (b, 3, H, W) in [-1, 1] -> latent (b, c, h, w)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """latent (b, c, h, w) -> image (b, 3, H, W), about [-1, 1]."""
        ...


class TextEncoder(Protocol):
    """Prompts to the rows of context that the network attends to. The empty prompt is a prompt."""

    def encode(self, texts: list[str]) -> Tensor:
        """b texts -> context (b, n) d."""
        ...


class OnStep(Protocol):
    """Told after every network call of a sampling run; an exception raised here stops the run."""

    def __call__(self, step: int, steps: int, rgb_x0: Tensor, depth_x0: Tensor) -> None:
        """step counts from 1 to steps.

        Rgb_x0 (b, c, h, w) and depth_x0 (b, 1, H, W) are the clean streams as now predicted.
        """
        ...
