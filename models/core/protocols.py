"""What a pipeline is, and the callables it takes as arguments: it imports none of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

ResultT = TypeVar("ResultT", covariant=True)  # a frozen dataclass, one per system


class ImageCodec(Protocol):
    """Images to latents and back. Latents are normalized: the network expects about unit variance."""

    def encode(self, image: Tensor) -> Tensor:
        """image (b, 3, H, W) in [-1, 1] -> latent (b, c, h, w)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """latent (b, c, h, w) -> image (b, 3, H, W), about [-1, 1]."""
        ...


class TextEncoder(Protocol):
    """Prompts to the context that the network attends to. The empty prompt is a prompt."""

    def encode(self, texts: list[str]) -> Tensor:
        """Prompts -> context (b, n, c)."""
        ...


class OnStep(Protocol):
    """Called once per step of a sampling run; an exception raised here stops the run.

    Parameters are passed by position, so that a callable may name them as it likes.
    """

    def __call__(self, step: int, steps: int, latents: Mapping[str, Tensor], /) -> None:
        """step counts from 1 to steps. latents: each stream's clean prediction x0, by the stream's name."""
        ...


class Pipeline(Protocol[ResultT]):
    """Prompts and images in, a Result out. Systems add parameters of their own, by keyword."""

    @classmethod
    def from_preset(
        cls,
        name: str,
        *,
        weights: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline[ResultT]:
        """A preset's pipeline; `weights` replaces the shipped ones. ValueError lists the presets."""
        ...

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> ResultT:
        """One batch. None takes the preset's default; height and width are in pixels."""
        ...
