"""Where a run's random numbers come from: a function of (seed, step, slice), on the host or on the device."""

from __future__ import annotations

import hashlib

import torch
from torch import Generator


def number_slice(seed: int, step: int, part: int) -> int:
    """The number that seeds one slice of one step."""
    digest = hashlib.blake2b(f"slice/{seed}/{step}/{part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_draws(number: int, generator: Generator) -> Generator:
    """The generator, seeded. Torch's own generators get the same seed, for dropout and the like."""
    torch.manual_seed(number)
    return generator.manual_seed(number)


def seed_slice(seed: int, step: int, part: int) -> Generator:
    """The generator of one slice of one step, on the CPU."""
    return seed_draws(number_slice(seed, step, part), Generator())
