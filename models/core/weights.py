"""Weights files: read safetensors, say what is wrong with them or what they are instead, fill a module strictly."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

KIND = "spatialweave"  # metadata entry that says what a file of ours holds
LARGEST_HEADER = 100_000_000  # bytes; the limit of the format

# what other files begin with, and how to say it
FOREIGN_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"),
    (b"<", "a web page, not weights; the download needs a login or another address"),
    (b"PK\x03\x04", "a PyTorch pickle (zip), which can run code when opened; use the safetensors file"),
    (b"\x80", "a PyTorch pickle, which can run code when opened; use the safetensors file"),
    (b"GGUF", "a GGUF file; use the safetensors file"),
)

# (what it is, parts of key names that it has): the first that fits is the name
KNOWN_KEYS = (
    ("a LoRA, a patch for another model", ("lora_",)),
    ("a Modality Forcing network", ("depth_in.weight", "double_stream_modulation_depth.lin.weight")),
    ("a FLUX.2 text-to-image network without a depth stream", ("double_stream_modulation_img.lin.weight",)),
    ("a FLUX network in diffusers' naming", ("single_transformer_blocks.0.",)),
    ("a HunyuanVideo network", ("txt_in.individual_token_refiner.", "double_blocks.0.img_mod.lin.weight")),
    ("a FLUX.1 network", ("double_blocks.0.img_mod.lin.weight",)),
    ("a Chroma network", ("distilled_guidance_layer.",)),
    ("a VGGT geometry encoder", ("aggregator.frame_blocks.0.",)),
    ("a MoGe geometry estimator", ("encoder.backbone.", "points_head.")),
    ("a Depth Anything estimator", ("pretrained.blocks.0.", "depth_head.")),
    ("a Depth Anything 3 estimator", ("backbone.", "head.scratch.")),
    ("a Stable Diffusion checkpoint", ("diffusion_model.input_blocks.0.",)),
    ("a FLUX.2 image autoencoder (VAE)", ("decoder.conv_in.weight", "bn.running_mean")),
    ("an image autoencoder (VAE)", ("decoder.conv_in.weight",)),
    ("the encoder half of a FLUX.2 autoencoder; load the whole one (VAE)", ("down.0.", "bn.running_mean")),
    ("the decoder half of a FLUX.2 autoencoder; load the whole one (VAE)", ("up.0.", "bn.running_mean")),
    ("a language model, used as a text encoder", ("layers.0.self_attn.q_proj.weight",)),
    ("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("a CLIP model", ("text_model.encoder.layers.0.",)),
    ("a Stable Diffusion network in diffusers' naming", ("down_blocks.0.", "up_blocks.0.")),
    ("SpatialWeave's tiny image codec", ("latent_mean", "latent_std")),
    ("SpatialWeave's tiny text encoder", ("words.weight", "places.weight")),
)


class WeightsError(ValueError):
    """A weights file that cannot be used; the message is one sentence that names the file, the fault and the cure."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself before any tensor is read."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    dtypes: Mapping[str, str]  # in the format's words: F32, BF16, F8_E4M3 ...
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # first byte in the file, and the one after the last


def read_header(path: str | os.PathLike) -> Header:
    """Names, shapes and metadata of a safetensors file; WeightsError if it is missing, damaged or not safetensors."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a weights file; name the file inside" if path.is_dir() else "does not exist; check the path"
        raise WeightsError(f"{path} {what}.")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            _refuse_foreign(path, start + file.read(24), size)
            file.seek(8)
            (length,) = struct.unpack("<Q", start)
            text = file.read(length) if length <= min(size - 8, LARGEST_HEADER) else b""
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in header.items()}
        places = {name: tuple(8 + length + offset for offset in entry["data_offsets"]) for name, entry in header.items()}
        end = max((stop for _, stop in places.values()), default=8 + length)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged or not a safetensors file: its header cannot be read; fetch it again.") from error
    if end != size:
        fault = "cut off" if size < end else "damaged"
        raise WeightsError(f"{path} is {fault}: it has {size:,} bytes where its header promises {end:,}; fetch it again.")
    return Header(shapes, metadata, dtypes, places)


def _refuse_foreign(path: Path, start: bytes, size: int) -> None:
    if size < 8:
        raise WeightsError(f"{path} has only {size} bytes: a download was probably interrupted; fetch it again.")
    for magic, what in FOREIGN_STARTS:
        # a safetensors file starts with its header's length: a byte of that may look like the others, the header's brace does not
        if start.startswith(magic) and start[8:9] != b"{":
            raise WeightsError(f"{path} is {what}.")


def read_tensors(path: str | os.PathLike, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """All tensors of a file whose header was read; WeightsError if they cannot be."""
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); fetch it again.") from error


def write_tensors(path: str | os.PathLike, state: Mapping[str, Tensor], metadata: Mapping[str, str], *, kind: str) -> Path:
    """Write a safetensors file whole or not at all; `kind` is what `describe` will call it. OSError is one sentence."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in state.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata={KIND: kind, **metadata})
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"Cannot write {path}: {reason}; free some space or choose another folder.") from error
    return path


def describe(header: Header) -> str:
    """What a weights file is, in a few words, from its own statement or its keys."""
    if header.metadata.get(KIND):
        return f"SpatialWeave's {header.metadata[KIND]}"
    return describe_keys(header.shapes)


def describe_keys(names: Iterable[str]) -> str:
    """What a set of tensor names is, in a few words."""
    names = list(names)
    known = name_keys(names)
    if known is not None:
        return known
    return f"a file of an unknown kind with {len(names)} tensors" + (f", the first named {min(names)}" if names else "")


def name_keys(names: Iterable[str]) -> str | None:
    """The entry of KNOWN_KEYS that a set of tensor names fits."""
    names = list(names)
    return next((what for what, parts in KNOWN_KEYS if all(any(part in name for name in names) for part in parts)), None)


def fill_module(module: nn.Module, state: Mapping[str, Tensor], *, what: str, device: str | torch.device = "cpu") -> nn.Module:
    """Give a module built on the meta device its tensors, in its own precisions, each exactly once.

    Tensors that need no conversion are used, not copied. WeightsError counts and names what is missing, unknown or misshapen.
    """
    own = module.state_dict()
    check_fit({name: tuple(value.shape) for name, value in own.items()}, {name: tuple(v.shape) for name, v in state.items()}, what)
    module.load_state_dict({name: value.to(device, own[name].dtype) for name, value in state.items()}, assign=True)
    return module


def check_fit(wanted: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise WeightsError unless both have the same names and shapes."""
    missing, unknown = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
    misshapen = [f"{name} is {got[name]}, wanted {wanted[name]}" for name in sorted(set(wanted) & set(got)) if wanted[name] != got[name]]
    faults = [("missing", missing), ("unknown", unknown), ("of another shape", misshapen)]
    said = [f"{len(names)} tensors {fault} (first: {names[0]})" for fault, names in faults if names]
    if said:
        raise WeightsError(f"{what} does not fit: {'; '.join(said)}.")
