"""The published files of this system, and of the bases it stands on."""

from __future__ import annotations

from pathlib import Path

from ..core.registry import PublishedFile, read_registry

NETWORK, TEXT_ENCODER, VAE = "flux_rgbd_9b_v2.safetensors", "qwen_3_8b_fp8mixed.safetensors", "flux2-vae.safetensors"


def released_files() -> list[PublishedFile]:
    return read_registry(Path(__file__).with_name("released.json"))
