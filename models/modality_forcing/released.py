"""The published files of this system, and of its base models."""

from __future__ import annotations

from pathlib import Path

from ..core.weights.registry import PublishedFile, read_registry

NETWORK, VAE = "flux_rgbd_9b_v2.safetensors", "flux2-vae.safetensors"
TEXT_ENCODERS = {
    12288: "qwen_3_8b_fp8mixed.safetensors",
    7680: "qwen_3_4b.safetensors",
}  # by the width of their prompt embeddings


def released_files() -> list[PublishedFile]:
    return read_registry(Path(__file__).with_name("released.json"))
