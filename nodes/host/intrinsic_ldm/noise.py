"""Shared noise: the noise that a sampler draws at each step is the same for an image and its maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode


def rewind(noise: torch.Tensor, seed: int | None) -> None:
    """Set torch's global generator to its state after drawing the images' noise (b, c, h, w) alone.

    Nodes that draw random numbers during sampling (ToMe) then give the same image as without the maps. The
    generator is left as it is if `noise` is not what core draws from this seed.
    """
    if seed is None:
        return
    generator = torch.Generator().manual_seed(seed)
    if torch.equal(torch.randn(noise.shape, generator=generator).to(noise), noise):
        torch.set_rng_state(generator.get_state())


class SharedNoise(TorchFunctionMode):
    """A context in which noise for the whole batch `shape` is drawn for its first half and repeated.

    The first half are the images, the second their maps. Random numbers are drawn as for the images alone, so
    that a seed gives the same noise with and without the maps. This holds for every sampler: all of them call
    torch.randn, torch.randn_like or normal_ in the end, some through other libraries. A network draws none of
    that shape, and is called inside `paused`: each of its operators would pass through here.
    """

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.shape, self.half = tuple(shape), shape[0] // 2

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.randn:
            size = kwargs.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            if tuple(size) == self.shape:
                rest = {name: value for name, value in kwargs.items() if name != "size"}
                return torch.cat([func((self.half, *self.shape[1:]), **rest)] * 2)
        elif func is torch.randn_like and args and tuple(args[0].shape) == self.shape:
            return torch.cat([func(args[0][: self.half], *args[1:], **kwargs)] * 2)
        elif func is torch.Tensor.normal_ and tuple(args[0].shape) == self.shape:
            func(args[0][: self.half], *args[1:], **kwargs)
            args[0][self.half :].copy_(args[0][: self.half])
            return args[0]
        return func(*args, **kwargs)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Off inside the block, unless another mode was entered after this one and is still on."""
        if _get_current_function_mode() is not self:
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()
