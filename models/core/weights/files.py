"""Weights files: read safetensors, identify other files and their faults, fill a module strictly."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..text_files import show_path
from .header import INT8, Header, WeightsError, read_header
from .int8_rows import pack_rows
from .mapped import map_tensors

KIND = "spatialweave"  # metadata entry that says what a file of ours holds
# the prefix of every name if parallel training's or torch.compile's wrapper is saved instead of the
# network in it
WRAPPERS = {"module.": "DataParallel or DistributedDataParallel", "_orig_mod.": "torch.compile"}
PART = re.compile(r"-(\d{3,})-of-(\d{3,})\.safetensors")  # of a model saved in several files
MARK_OF_FLOAT8 = "scaled_fp8"  # a tensor of which only the dtype is used
# the code of 8-bit floats from which on, in each half, there is only NaN and infinity
FIRST_BAD_CODES = {torch.float8_e4m3fn: (0x7F, 0xFF), torch.float8_e5m2: (0x7C, 0xFC)}

# (what it is, parts of key names that it has) of files that others release; the first that fits is the
# name; files of ours state what they are in their metadata, under KIND
RELEASED_KEYS = (
    ("a LoRA, a patch for another model", ("lora_",)),
    ("an OmniGen2 network", ("time_caption_embed.timestep_embedder.", "ref_image_patch_embedder.weight")),
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
)


def read_tensors(
    path: str | os.PathLike, device: str | torch.device = "cpu", *, finite: bool = True
) -> dict[str, Tensor]:
    """All tensors of a file.

    WeightsError if they cannot be read, or, with `finite`, if one holds NaN or infinity.
    """
    header = read_header(path)
    try:
        tensors = {name: value.to(device) for name, value in map_tensors(path, header)}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"Expected to read {show_path(path)}, got an error ({error}). Download it again."
        ) from error
    if finite:
        check_finite(tensors, show_path(path))
    return tensors


def check_file(path: str | os.PathLike) -> Header:
    """The header of a file that another program's loader will read, whose tensors are all finite.

    One tensor is read at a time.
    """
    header = read_header(path)
    try:
        for name, value in map_tensors(path, header):
            check_finite({name: value}, show_path(path))
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"Expected to read {show_path(path)}, got an error ({error}). Download it again."
        ) from error
    return header


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """WeightsError for the first tensor that holds NaN or infinity; `what` is the file's name.

    Much cheaper than reading them.
    """
    for name, value in tensors.items():
        if not name.endswith(MARK_OF_FLOAT8) and not is_finite(value):
            raise WeightsError(
                f"Expected finite numbers in {name} of {what}, got {_count_bad(value)}. Use another file: "
                "this one is damaged, or its training diverged."
            )


def is_finite(value: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite, without a copy of it. Integers are always finite."""
    if not value.numel() or not (value.is_floating_point() or value.is_complex()):
        return True
    if value.dtype in FIRST_BAD_CODES:
        positive, negative = FIRST_BAD_CODES[value.dtype]
        return (
            int(value.view(torch.int8).amax()) < positive and int(value.view(torch.uint8).amax()) < negative
        )
    if value.itemsize == 1:
        return not _count_small(value)
    # both are NaN if any number is
    low, high = (torch.view_as_real(value) if value.is_complex() else value).aminmax()
    return bool(low.isfinite() & high.isfinite())


def _count_small(value: Tensor) -> int:
    """NaN and infinities of the rarer floats of one byte; those of half a byte have none."""
    if "float8" not in str(value.dtype):
        return 0
    bad = ~torch.arange(256, dtype=torch.uint8).view(value.dtype).float().isfinite()
    return sum(int((value.view(torch.uint8) == code).sum()) for code in bad.nonzero().flatten().tolist())


def _count_bad(value: Tensor) -> str:
    value = value.float() if value.itemsize == 1 else value
    nans = int(value.isnan().sum())
    infinite = value.numel() - int(value.isfinite().sum()) - nans
    differences = [f"{count} {word}" for count, word in ((nans, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(differences)} of {value.numel()}"


def write_tensors(
    path: str | os.PathLike,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    kind: str,
    int8: bool = False,
) -> Path:
    """Write a safetensors file whole or not at all; `kind` is what `describe` will call it. With `int8`
    large matrices are stored in eight bits (int8_rows.py).

    An OSError is one message.
    """
    if int8:
        state, metadata = pack_rows(state), {INT8: "1", **metadata}
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
        raise OSError(f"Cannot write {path}: {reason}. Free some space or choose another folder.") from error
    return path


def describe(header: Header) -> str:
    """What a weights file is, in a few words, from its metadata or its keys."""
    if header.metadata.get(KIND):
        wrapper = find_wrapper(header.shapes)
        return f"SpatialWeave's {header.metadata[KIND]}" + (f" {explain_wrapper(wrapper)}" if wrapper else "")
    return describe_keys(header.shapes)


def describe_state(state: Mapping[str, Tensor]) -> Header:
    """A state dict as if it were a file."""
    names = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    names |= {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}
    dtypes = {name: names.get(v.dtype, str(v.dtype).removeprefix("torch.")) for name, v in state.items()}
    return Header({name: tuple(v.shape) for name, v in state.items()}, {}, dtypes)


def describe_keys(names: Iterable[str]) -> str:
    """What a set of tensor names is, in a few words."""
    names = list(names)
    wrapper = find_wrapper(names)
    if wrapper:
        return f"{describe_keys(name.removeprefix(wrapper) for name in names)} {explain_wrapper(wrapper)}"
    known = name_keys(names)
    if known is not None:
        return known
    return f"a file of an unknown kind with {len(names)} tensors" + (
        f", the first named {min(names)}" if names else ""
    )


def find_wrapper(names: Iterable[str]) -> str:
    """The prefix of WRAPPERS that all of the names have; "" if there is none."""
    names = list(names)
    first = next(
        (wrapper for wrapper in WRAPPERS if names and all(name.startswith(wrapper) for name in names)), ""
    )
    return first + find_wrapper(name.removeprefix(first) for name in names) if first else ""


def explain_wrapper(wrapper: str) -> str:
    """What to do about it, after the name of a file."""
    makers = " inside ".join(maker for part, maker in WRAPPERS.items() if part in wrapper)
    remedy = "save the network inside, or strip it from the names"
    return f'saved from {makers}, with "{wrapper}" before every name ({remedy})'


def explain_part(what: str) -> str:
    """If a file's name says that it is one part of several: that, and what to do, to be put before a full
    stop.
    """
    match = PART.search(what)
    if not match or int(match[2]) < 2:
        return ""
    part = f"part {int(match[1])} of {int(match[2])} of one model"
    return f"; it is {part}, so join all parts into one safetensors file and use that"


def name_keys(names: Iterable[str]) -> str | None:
    """The entry of RELEASED_KEYS that a set of tensor names fits."""
    names = list(names)
    return next(
        (what for what, parts in RELEASED_KEYS if all(any(part in name for name in names) for part in parts)),
        None,
    )


def fill_module(
    module: nn.Module, state: Mapping[str, Tensor], *, what: str, device: str | torch.device = "cpu"
) -> nn.Module:
    """Fill a module built on the meta device with its tensors, in its own precisions, each exactly once.

    Tensors that need no conversion are used, not copied. WeightsError counts and names tensors that are
    missing, unknown, of another shape, or integer where the module has floating point.
    """
    own = module.state_dict()
    check_fit(
        {name: tuple(value.shape) for name, value in own.items()},
        {name: tuple(v.shape) for name, v in state.items()},
        what,
    )
    for name, value in state.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise WeightsError(
                f"Expected floating-point numbers in {name} of {what}, got {kind}. Use the unquantized file."
            )
    module.load_state_dict(
        {name: value.to(device, own[name].dtype) for name, value in state.items()}, assign=True
    )
    return module


def check_fit(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise WeightsError unless both have the same names and shapes."""
    missing, unknown = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    misshapen = [
        f"{name} is {got[name]}, expected {expected[name]}"
        for name in sorted(set(expected) & set(got))
        if expected[name] != got[name]
    ]
    faults = [("missing", missing), ("unknown", unknown), ("of another shape", misshapen)]
    differences = [f"{len(names)} tensors {fault} (first: {names[0]})" for fault, names in faults if names]
    wrapper = find_wrapper(got)
    if wrapper and differences:
        differences.append(f"it was {explain_wrapper(wrapper)}")
    if differences:
        raise WeightsError(
            f"Expected the tensors of this network in {what}, got others: "
            f"{'; '.join(differences)}{explain_part(what) if missing else ''}."
        )
