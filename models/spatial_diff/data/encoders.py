"""Encoders of the editors that training knows: the tiny one's, and Flux-Kontext's in diffusers' form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.text_files import show_path
from ...core.weights.registry import hash_file
from ...tiny.weights import CODEC_FILE, load_codec
from ..grammar import tokenize_instructions

PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
PATCH = 2  # of Flux's latents: images are padded to whole patches


class TinyEncoders:
    """The tiny codec, and the ids of the tiny editor's words."""

    def __init__(self, codec: str | Path = CODEC_FILE, device: str | torch.device = "cpu"):
        self.path, self.device = Path(codec), device
        self.codec = load_codec(self.path, device=device).train(False)

    def facts(self) -> Mapping[str, Any]:
        return {"editor": "tiny", "codec": hash_file(self.path)}

    def encode_images(self, images: Tensor) -> Tensor:
        return self.codec.encode(images.to(self.device)).cpu()

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"tokens": tokenize_instructions(list(texts))}


class KontextEncoders:
    """The autoencoder and both text encoders of a folder of Flux-Kontext in diffusers' form."""

    def __init__(
        self, base: str | Path, device: torch.device, dtype: torch.dtype = torch.bfloat16, words: int = 512
    ):
        self.base, self.device, self.words = Path(base), device, words
        missing = [part for part in PARTS if not (self.base / part).is_dir()]
        if missing:
            raise ValueError(
                f"Expected Flux-Kontext in diffusers' form in {show_path(self.base)}, got a folder without "
                f"{', '.join(missing)}. Give the pipeline's folder."
            )
        pipeline = find_kontext_class().from_pretrained(
            self.base, transformer=None, torch_dtype=dtype, local_files_only=True
        )
        self.pipeline = pipeline
        pipeline.vae.to(device, torch.float32).requires_grad_(False)
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
            encoder.to(device).requires_grad_(False)

    def facts(self) -> Mapping[str, Any]:
        sizes = {
            path.relative_to(self.base).as_posix(): path.stat().st_size
            for part in PARTS
            for path in sorted((self.base / part).iterdir())
            if path.suffix in (".safetensors", ".json", ".model")
        }
        return {"editor": "kontext", "base": sizes, "words": self.words}

    def encode_images(self, images: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latent = vae.encode(images.to(self.device)).latent_dist.mode()
        latent = (latent - vae.config.shift_factor) * vae.config.scaling_factor
        odd = [side for side in latent.shape[2:] if side % PATCH]
        if odd:
            raise ValueError(
                f"Expected images of a size that is a multiple of 16, got {tuple(images.shape[2:])}. Give "
                "--size."
            )
        return latent.cpu()

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        context, pooled, _ = self.pipeline.encode_prompt(
            list(texts), None, device=self.device, max_sequence_length=self.words
        )
        return {"context": context.to("cpu", torch.bfloat16), "pooled": pooled.to("cpu", torch.bfloat16)}


def find_kontext_class():
    """diffusers' class of the pipeline; an error explains what to install."""
    try:
        from diffusers import FluxKontextPipeline
    except ImportError as error:
        raise ImportError(
            "Expected a diffusers with FluxKontextPipeline, for encoding edits, got none. Install "
            "the extra: spatialweave[train]."
        ) from error
    return FluxKontextPipeline
