"""The intrinsic VAE as a core VAE, with core's memory management and tiling, for maps instead of images."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ....models.core.weights.files import check_fit
from ....models.intrinsic_ldm.config import CHANNELS, VaeConfig
from ....models.intrinsic_ldm.maps.inputs import Notes, Size, crop_maps, pad_maps
from ....models.intrinsic_ldm.tiny import VAE_FILE as TINY_VAE
from ....models.intrinsic_ldm.weights import IntrinsicVae, fold_scale, load_intrinsic_vae
from ..shared.memory import explain_full_memory
from ..shared.nested_latents import SIZE, read_samples
from ..shared.shipped import TINY, explain_missing
from .model import split_intrinsic

FOLDER = "vae"
SD_WIDTH = 128  # base channels of SD's autoencoder, for which core estimates memory
SMALLEST_TILE = 64
NOT_FOR_IMAGES = (
    "Expected the base model's VAE for an image, got an intrinsic VAE, which {does} maps. Use {node} for "
    "maps, the base model's VAE for the image."
)


class IntrinsicVAE(comfy.sd.VAE):
    """Core's VAE class around an autoencoder of 8 image channels; its latents have the base VAE's scale.

    Core's image nodes call `encode` and `decode`, which raise ValueError; our nodes call `encode_maps` and
    `decode_maps`.
    """

    def __init__(self, file: IntrinsicVae):
        config = file.config
        dtype = comfy.model_management.vae_dtype()  # float32 unless ComfyUI was started with another
        super().__init__(
            sd=fold_scale(file.state, file.ratio), config={"params": config.for_core()}, dtype=dtype
        )
        self.latent_channels, self.output_channels = config.latent_channels, CHANNELS
        self.upscale_ratio = self.downscale_ratio = config.stride
        self.working_dtypes = [torch.float32]  # bfloat16 would round 1 / depth to steps of 1/256
        self.process_input = lambda maps: maps
        self.process_output = lambda maps: maps.clamp_(-1, 1)
        scale_memory(self, config)

    def encode(self, pixel_samples):
        raise ValueError(NOT_FOR_IMAGES.format(does="encodes", node="Encode Intrinsics"))

    def decode(self, samples_in, vae_options=None):
        raise ValueError(NOT_FOR_IMAGES.format(does="decodes", node="Decode Intrinsics"))

    def encode_tiled(self, pixel_samples, *args, **kwargs):
        self.encode(pixel_samples)

    def decode_tiled(self, samples, *args, **kwargs):
        self.decode(samples)

    def encode_maps(self, maps: Tensor, tile: int = 0) -> Tensor:
        """Maps (b, 8, H, W) in [-1, 1] to latents (b, c, h, w); `tile` is in pixels, 0 for none.

        H and W are multiples of the stride; core would crop the remainder.
        """
        maps = maps.movedim(1, -1)
        if not tile:
            return super().encode(maps)
        return super().encode_tiled(maps, tile_x=tile, tile_y=tile, overlap=tile // 4)

    def decode_maps(self, latents: Tensor, tile: int = 0) -> Tensor:
        """Latents (b, c, h, w) to maps (b, 8, H, W) in [-1, 1].

        `tile` is in pixels; with 0 core decodes in tiles only if memory runs out.
        """
        if not tile:
            return super().decode(latents).movedim(-1, 1)
        side = tile // self.upscale_ratio
        return super().decode_tiled(latents, tile_x=side, tile_y=side, overlap=side // 4).movedim(-1, 1)

    def decode_tiled_(self, samples, tile_x=64, tile_y=64, overlap=16):
        """Tiled decoding to 8 channels, as core's own method assumes 3."""

        def decode(tile: Tensor) -> Tensor:
            return self.first_stage_model.decode(tile.to(self.device, self.vae_dtype)).to(
                self.vae_output_dtype()
            )

        steps = samples.shape[0] * comfy.utils.get_tiled_scale_steps(
            samples.shape[3], samples.shape[2], tile_x, tile_y, overlap
        )
        maps = comfy.utils.tiled_scale(
            samples, decode, tile_x, tile_y, overlap,
            upscale_amount=self.upscale_ratio, out_channels=self.output_channels,
            output_device=self.output_device, pbar=comfy.utils.ProgressBar(steps),
        )  # fmt: skip
        return self.process_output(maps)


def scale_memory(vae: comfy.sd.VAE, config: VaeConfig) -> None:
    """Scale core's memory estimates from SD's autoencoder to one of another width and stride."""
    share, encode, decode = config.width / SD_WIDTH, vae.memory_used_encode, vae.memory_used_decode
    vae.memory_used_encode = lambda shape, dtype: share * encode(shape, dtype)
    vae.memory_used_decode = lambda shape, dtype: share * decode(shape, dtype) * config.stride**2 / 64


def list_vaes() -> list[str]:
    """The tiny model's VAE, then the files of core's vae folders."""
    return [TINY, *folder_paths.get_filename_list(FOLDER)]


def find_missing_vae(name: str | None) -> str | None:
    """What to do about a VAE file that is not there; else None."""
    remedy = (
        f"Copy it there and refresh, or choose another: none is published, {TINY!r} ships with Load Tiny "
        "Diffusion, and `spatialweave train` (in an installed clone of the repository) makes those of "
        "other base models."
    )
    return explain_missing(name, list_vaes(), FOLDER, remedy)


def load_vae(name: str) -> IntrinsicVAE:
    """The intrinsic VAE of a file in models/vae; WeightsError for any other file."""
    return open_vae(str(TINY_VAE) if name == TINY else folder_paths.get_full_path_or_raise(FOLDER, name))


def open_vae(path: str) -> IntrinsicVAE:
    file = load_intrinsic_vae(path)
    with torch.device("meta"):
        own = comfy.ldm.models.autoencoder.AutoencoderKL(**file.config.for_core()).state_dict()
    shapes = ({name: tuple(value.shape) for name, value in state.items()} for state in (own, file.state))
    check_fit(*shapes, f"{path}, an intrinsic VAE,")
    vae = IntrinsicVAE(file)
    vae.patcher.cached_patcher_init = (open_patcher, (path,))
    return vae


def open_patcher(path: str, disable_dynamic: bool = False):
    """The patcher alone: core's factory for a second copy on another device."""
    return open_vae(path).patcher


class EncodedMaps(NamedTuple):
    """The result of `encode_maps`."""

    latent: dict  # LATENT, with the size in pixels before padding if there was any
    notes: Notes


class DecodedMaps(NamedTuple):
    """The result of `decode_maps`."""

    stacked: Tensor  # (b, 8, h, w) in [-1, 1]
    padded: Size  # height and width in pixels, padding included
    notes: Notes


def encode_maps(vae, maps: Tensor, tile: int) -> EncodedMaps:
    """The LATENT of maps (b, 8, H, W), padded to multiples of the VAE's stride."""
    check_vae(vae)
    check_tile(tile)
    padded, notes = pad_maps(maps, vae.downscale_ratio)
    size = {} if padded.shape == maps.shape else {SIZE: tuple(maps.shape[2:])}
    with guard_memory(vae, len(maps), padded.shape[2:], "encode"):
        return EncodedMaps({"samples": vae.encode_maps(padded, tile)} | size, notes)


def decode_maps(vae, latent: dict, tile: int) -> DecodedMaps:
    """The maps of a maps LATENT, or of the maps stream of a joint one."""
    check_vae(vae)
    check_tile(tile)
    samples = read_samples(latent, "samples")
    if getattr(samples, "is_nested", False):
        samples = split_intrinsic(latent)[1]["samples"]
    if samples.dim() != 4 or samples.shape[1] != vae.latent_channels:
        raise ValueError(
            f"Expected a latent (b, {vae.latent_channels}, h, w) for this intrinsic VAE, got "
            f"{tuple(samples.shape)}. Connect the maps_latent of Split Intrinsic Latent."
        )
    with guard_memory(vae, len(samples), [side * vae.upscale_ratio for side in samples.shape[2:]], "decode"):
        padded = vae.decode_maps(samples, tile)
    stacked, notes = crop_maps(padded, latent.get(SIZE), vae.upscale_ratio)
    return DecodedMaps(stacked, tuple(padded.shape[2:]), notes)


def guard_memory(vae, count: int, size, what: str) -> AbstractContextManager[None]:
    """A context that explains running out of memory, even in tiles, in one sentence."""
    return explain_full_memory(
        vae.device, lambda: f"{what} the maps of {count} x {size[0]} x {size[1]} (batch x height x width)",
        "choose a tile_size of 256 or less, make the image smaller, or process fewer at a time, with Latent "
        "From Batch or Image From Batch",
    )  # fmt: skip


def check_vae(vae) -> None:
    if not isinstance(vae, IntrinsicVAE):
        channels = getattr(vae, "output_channels", "other")
        raise ValueError(
            f"Expected an intrinsic VAE, of {CHANNELS} channels, got one of {channels}. Connect that of Load "
            "Intrinsic VAE."
        )


def check_tile(tile: int) -> None:
    if 0 < tile < SMALLEST_TILE:
        raise ValueError(
            f"Expected tile_size 0 for no tiles, or at least {SMALLEST_TILE} pixels, got {tile}. Choose "
            "another."
        )
