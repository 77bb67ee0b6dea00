"""Latents of intrinsic maps as training samples of the tiny I-LDM's base, mixed or paired with images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.training.data import FolderDataset, read_many
from ..tiny.text import PAD, tokenize
from .world_samples import InMemory, WorldLatents, stack


class MixedLatents(InMemory):
    """Samples of `WorldLatents` mixed with latents of intrinsic maps, as images of another domain.

    SD's training images include depth maps, normal maps and line drawings; the world's include none. `maps`
    is a folder that `spatialweave intrinsics encode` wrote, `share` the maps' fraction of all samples.
    latent, tokens and cells as in `WorldLatents`; maps is True for a map. A map's caption follows a padding
    token, so that no prompt asks for maps; its cells are unknown (-1).
    """

    def __init__(self, images: WorldLatents, maps: FolderDataset, share: float):
        if not 0 < share < 1:
            raise ValueError(
                f"Expected maps_share above 0 and below 1, got {share}. Leave out maps for none."
            )
        self.images, self.count = images, round(len(images) * share / (1 - share))
        samples = read_many(maps, range(len(maps)))
        self.latents = stack([sample["intrinsic_latent"] for sample in samples], "intrinsic_latent", maps)
        self.tokens = mark_maps(tokenize([maps.entry(i)["caption"] for i in range(len(maps))]))
        like = images[0]
        if self.latents.shape[1:] != like["latent"].shape:
            raise ValueError(
                f"Expected latents of maps {tuple(like['latent'].shape)}, as the images have, "
                f"got {tuple(self.latents.shape[1:])} in {maps.folder}. "
                "Encode the maps with this base's autoencoder, at the images' size."
            )
        self.unknown = torch.full_like(like["cells"], -1)

    def __len__(self) -> int:
        return len(self.images) + self.count

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        numbers = torch.as_tensor(indices)
        is_map = numbers >= len(self.images)
        rows = (numbers - len(self.images)) % len(self.latents)
        maps = {
            "latent": self.latents[rows].float(),
            "tokens": self.tokens[rows][:, None],
            "cells": self.unknown,
        }
        images = self.images.__getitems__(torch.where(is_map, 0, numbers).tolist())
        batch = {"maps": is_map}
        for name, value in maps.items():
            flags = is_map.view(-1, *[1] * (images[name].ndim - 1))
            batch[name] = torch.where(flags, value, images[name])
        return batch


class PairedLatents(InMemory):
    """Images, each with the intrinsic maps of its scene, of a folder of `spatialweave intrinsics encode`.

    latent and intrinsic_latent (c, h, w); tokens and maps_tokens (n,), see `mark_maps`.
    """

    def __init__(self, pairs: FolderDataset):
        samples = read_many(pairs, range(len(pairs)))
        self.latents = stack([sample["latent"] for sample in samples], "latent", pairs)
        self.maps = stack([sample["intrinsic_latent"] for sample in samples], "intrinsic_latent", pairs)
        self.tokens = tokenize([pairs.entry(i)["caption"] for i in range(len(pairs))])

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        tokens = self.tokens[rows]
        return {
            "latent": self.latents[rows].float(),
            "intrinsic_latent": self.maps[rows].float(),
            "tokens": tokens,
            "maps_tokens": mark_maps(tokens),
        }


def mark_maps(tokens: Tensor) -> Tensor:
    """Tokens (b, n) after a padding token, which marks maps for a tiny base, as no prompt begins with one."""
    return torch.cat([torch.full_like(tokens[:, :1], PAD), tokens[:, :-1]], dim=1)
