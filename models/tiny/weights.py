"""The shipped files of the tiny codec and the tiny text encoder, and what a wrong file is."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from ..core.weights.files import (
    WeightsError,
    check_fit,
    describe,
    fill_module,
    read_header,
    read_tensors,
    write_tensors,
)
from .codec import TinyCodec
from .text import TinyTextEncoder

CODEC_FILE = Path(__file__).with_name("codec.safetensors")
TEXT_FILE = Path(__file__).with_name("text.safetensors")


def load_codec(
    path: str | os.PathLike = CODEC_FILE, *, operations=torch.nn, device="cpu", dtype=torch.float32
) -> TinyCodec:
    """The tiny codec; a WeightsError says what any other file is."""
    return _load(
        TinyCodec(operations=operations, device="meta", dtype=dtype),
        path,
        "tiny image codec",
        "decoder.0.weight",
        device,
    )


class UnfilledEmbedding(nn.Embedding):
    """An embedding without initial values.

    Torch's own are drawn by normal_, which on the meta device imports torch._dynamo and sympy: a second, and
    150 MB.
    """

    def reset_parameters(self) -> None:
        """The file has the values."""


def load_text_encoder(
    path: str | os.PathLike = TEXT_FILE, *, operations=torch.nn, device="cpu", dtype=torch.float32
) -> TinyTextEncoder:
    """The tiny text encoder; a WeightsError says what any other file is."""
    if operations is nn:
        operations = SimpleNamespace(Linear=nn.Linear, LayerNorm=nn.LayerNorm, Embedding=UnfilledEmbedding)
    return _load(
        TinyTextEncoder(operations=operations, device="meta", dtype=dtype),
        path,
        "tiny text encoder",
        "words.weight",
        device,
    )


def save_part(
    path: str | os.PathLike, module: nn.Module, kind: str, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write a module of the tiny system; float16 halves the file, at less than the codec's own error."""
    state = {name: value.to(dtype) for name, value in module.state_dict().items()}
    write_tensors(path, state, {"licence": "Apache-2.0"}, kind=kind)


def _load(module: nn.Module, path: str | os.PathLike, kind: str, marker: str, device) -> nn.Module:
    header = read_header(path)
    if marker not in header.shapes:
        raise WeightsError(
            f"Expected a {kind}, got {path}, which is {describe(header)}. Use the file that ships with "
            "SpatialWeave."
        )
    check_fit(
        {name: tuple(value.shape) for name, value in module.state_dict().items()},
        header.shapes,
        f"{path}, a {kind}",
    )
    return fill_module(module, read_tensors(path), what=str(path), device=device)
