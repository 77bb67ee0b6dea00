"""Files of editors: the tiny one that ships, and Flux-Kontext's as BFL and ComfyUI name its tensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.weights.files import (
    WeightsError,
    check_fit,
    describe,
    fill_module,
    read_header,
    read_tensors,
    write_tensors,
)
from ..core.weights.header import Header
from ..tiny.text import TinyTextEncoder
from .flux import KONTEXT, Flux, FluxConfig
from .grammar import VOCABULARY, WORDS

EDITOR_FILE = Path(__file__).with_name("tiny_editor.safetensors")
TEXT_FILE = Path(__file__).with_name("tiny_text.safetensors")
LORA_FILE = Path(__file__).with_name("tiny_lora.safetensors")  # trained with the tiny connector
KIND, TEXT_KIND = "FLUX.1 editor", "text encoder of the tiny editor"
CONFIG = "config"  # metadata entry: the configuration as JSON
MARKER = "double_blocks.0.img_mod.lin.weight"
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")  # of the names in other programs' files
DTYPES = ("F32", "F16", "BF16")


def load_editor(
    path: str | os.PathLike, *, config: FluxConfig | None = None, device="cpu", dtype: torch.dtype | None =
    None, operations=torch.nn,
) -> Flux:  # fmt: skip
    """An editor from a file; `dtype=None` keeps the file's precision. WeightsError says what a wrong file is.

    `config` refuses a file of another shape.
    """
    header = read_header(path)
    found, prefix = read_editor_config(header, str(path))
    if config is not None and found != config:
        raise WeightsError(f"Expected an editor of {config} in {path}, got one of {found}. Use another file.")
    own = {"F16": torch.float16, "BF16": torch.bfloat16}.get(header.dtypes[prefix + MARKER], torch.float32)
    network = Flux(found, operations=operations, device="meta", dtype=dtype or own)
    state = {
        rename_norm(name.removeprefix(prefix)): value
        for name, value in read_tensors(path).items()
        if name.startswith(prefix)
    }
    return fill_module(network, state, what=str(path), device=device)


def read_editor_config(header: Header, what: str) -> tuple[FluxConfig, str]:
    """The configuration of a file, and the prefix of its names."""
    prefix = next((each for each in PREFIXES if each + MARKER in header.shapes), None)
    if prefix is None:
        raise WeightsError(
            f"Expected a {KIND}, got {describe(header)} in {what}. Use a FLUX.1 network such as "
            "flux1-kontext-dev.safetensors."
        )
    quantized = sorted(set(header.dtypes.values()) - set(DTYPES))
    if quantized:
        raise WeightsError(
            f"Expected an unquantized {KIND} in {what}, got {', '.join(quantized)}. Use the bfloat16 file."
        )
    shapes = {
        name.removeprefix(prefix): shape for name, shape in header.shapes.items() if name.startswith(prefix)
    }
    if CONFIG in header.metadata:
        try:
            config = FluxConfig(**json.loads(header.metadata[CONFIG]))
        except (ValueError, TypeError) as error:
            raise WeightsError(
                f"Expected a sound configuration in the metadata of {what}, got a faulty one ({error}). "
                "Fetch the file again."
            ) from error
    else:
        config = infer_config(shapes, what)
    expected = {name: tuple(value.shape) for name, value in Flux(config, device="meta").state_dict().items()}
    check_fit(expected, {rename_norm(name): shape for name, shape in shapes.items()}, f"{what}, a {KIND},")
    return config, prefix


def infer_config(shapes: Mapping[str, tuple[int, ...]], what: str) -> FluxConfig:
    """A released network's configuration, from its shapes: heads, axes and patches are always FLUX.1's."""
    width, channels = shapes["img_in.weight"]
    if width % KONTEXT.head_dim:
        raise WeightsError(
            f"Expected a width that is a multiple of {KONTEXT.head_dim} in {what}, whose metadata has no "
            f"configuration, got {width}. Write the file with its configuration."
        )
    blocks = {
        kind: 1
        + max((int(m[1]) for name in shapes if (m := re.match(rf"{kind}\.(\d+)\.", name))), default=-1)
        for kind in ("double_blocks", "single_blocks")
    }
    vector = shapes.get("vector_in.in_layer.weight")
    return replace(
        KONTEXT, in_channels=channels // KONTEXT.patch_size**2, context_in_dim=shapes["txt_in.weight"][1],
        vec_in_dim=vector[1] if vector else 0, hidden_size=width, num_heads=width // KONTEXT.head_dim,
        depth=blocks["double_blocks"], depth_single_blocks=blocks["single_blocks"],
        guidance_embed="guidance_in.in_layer.weight" in shapes,
    )  # fmt: skip


def rename_norm(name: str) -> str:
    """BFL's name of a norm's scale, which ComfyUI's newer files call weight."""
    return name[: -len("weight")] + "scale" if name.endswith(("_norm.weight",)) else name


def save_editor(
    path: str | os.PathLike,
    state: Mapping[str, Tensor],
    config: FluxConfig,
    *,
    dtype: torch.dtype | None = None,
    int8: bool = False,
) -> Path:
    """Write an editor with its configuration as metadata, cast to `dtype` if given; with `int8` its large
    matrices in eight bits, read as float16."""
    tensors = {name: value.to(dtype or value.dtype) for name, value in state.items()}
    metadata = {CONFIG: json.dumps(asdict(config)), "licence": "Apache-2.0"}
    return write_tensors(path, tensors, metadata, kind=KIND, int8=int8)


def new_text_encoder(width: int, *, operations=torch.nn, device=None, dtype=None) -> TinyTextEncoder:
    """The tiny editor's text encoder: an embedding of each word and of its position."""
    return TinyTextEncoder(
        width, vocabulary=VOCABULARY, tokens=WORDS, operations=operations, device=device, dtype=dtype
    )


def load_text(
    path: str | os.PathLike,
    width: int,
    *,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    operations=torch.nn,
) -> TinyTextEncoder:
    """The tiny editor's text encoder; a WeightsError says what any other file is."""
    header = read_header(path)
    if "words.weight" not in header.shapes:
        raise WeightsError(
            f"Expected a {TEXT_KIND}, got {describe(header)} in {path}. Use the file that ships with "
            "SpatialWeave."
        )
    encoder = new_text_encoder(width, operations=operations, device="meta", dtype=dtype)
    return fill_module(encoder, read_tensors(path), what=f"{path}, a {TEXT_KIND},", device=device)


def save_text(
    path: str | os.PathLike, state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None
) -> Path:
    tensors = {name: value.to(dtype or value.dtype) for name, value in state.items()}
    return write_tensors(path, tensors, {"licence": "Apache-2.0"}, kind=TEXT_KIND)
