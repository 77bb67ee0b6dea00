"""One noise for both domains: what a sampler draws on the way, an image and its intrinsic maps get alike."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode


def rewind(noise: torch.Tensor, seed: int | None) -> None:
    """Put torch's generator to where a run of the images alone has it when sampling starts, with their noise (b, c, h, w) drawn and none
    for maps. Nodes that draw on the way (ToMe) then do the same to the image. Noise that core did not draw from the seed leaves it as is.
    """
    if seed is None:
        return
    generator = torch.Generator().manual_seed(seed)
    if torch.equal(torch.randn(noise.shape, generator=generator).to(noise), noise):
        torch.set_rng_state(generator.get_state())


class SharedNoise(TorchFunctionMode):
    """While it is on, noise of the shape of the whole batch (images first, their maps after) is drawn once and given to both.

    It is drawn as a run of the images alone would draw it, so seeds mean the same with and without the maps, in any sampler: they all
    come down to torch.randn, torch.randn_like or normal_, some through libraries of their own.
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
