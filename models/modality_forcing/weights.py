"""Weights files: released tensor names, the config of a file, and what a wrong file is."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.weights.files import KIND as KIND_KEY
from ..core.weights.files import (
    Header,
    WeightsError,
    check_fit,
    describe,
    explain_part,
    fill_module,
    find_wrapper,
    read_header,
    read_tensors,
)
from ..core.weights.network_files import (
    WITHOUT_FLOAT16,
    PathOrState,
    check_dtypes,
    module_shapes,
    read_renamed,
    read_weights_header,
    write_network,
)
from .config import PRESETS, ModalityForcingConfig, find_trained_size
from .network import ModalityForcing

PREFIX = "dit."  # of the released file
# any of these, in any order: torch.compile, DataParallel, training loops and ComfyUI add their own prefixes
# to all names
PREFIXES = re.compile(r"(?:(?:dit|model|diffusion_model|module|_orig_mod|net|network)\.)*")
COMPILED = "_orig_mod."  # torch.compile's, before the names of a block that was compiled alone
KIND = "Modality Forcing network"
TRAINED_SIZE = "trained_size"  # metadata: the side in pixels of the images it was trained on
MARKERS = ("depth_in.weight", "double_stream_modulation_depth.lin.weight", "depth_final_layer.linear.weight")
FLUX2_MARKER = "double_stream_modulation_img.lin.weight"
FIRST_VARIANT = ("cross_alpha_img", "cross_alpha_depth")  # what the first published variant does not have
BLOCKS = ("double_blocks.", "single_blocks.", "depth_decoder_blocks.")
DEPTH_HEAD = "depth_final_layer."
QUANTIZED = (".comfy_quant", ".scale_weight", ".weight_scale", "scaled_fp8")
# what each dtype of a file is loaded as: float16 overflows in this network, and no layer computes in 8 bits
# without scales
BODY_DTYPES = WITHOUT_FLOAT16 | dict.fromkeys(
    ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), torch.bfloat16
)
# what shapes and settings that are no network's raise
NOT_A_NETWORK = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    StopIteration,
    ArithmeticError,
    RecursionError,
)
Shapes = Mapping[str, tuple[int, ...]]


def load_network(
    path_or_state: PathOrState,
    *,
    config: ModalityForcingConfig | None = None,
    operations=torch.nn,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> tuple[ModalityForcing, ModalityForcingConfig]:
    """A network and its config from a safetensors file, or from a state dict whose tensors it takes over.

    The config is `config`, else the file's own, else inferred from the shapes. `dtype=None` keeps the file's
    precision (float32 for float16, in which this network overflows, and for float64); the depth head is
    always float32. WeightsError says in one sentence what a wrong file is.
    """
    header, what = read_weights_header(path_or_state)
    prefix = find_prefix(header, what)
    config = config or find_config(header, prefix, what)
    names = own_names(header.shapes, prefix, what)
    check_precisions({names[name]: found for name, found in header.dtypes.items()}, what)
    stored = {ours: header.dtypes[name] for name, ours in names.items()}.get("img_in.weight", "")
    network = ModalityForcing(
        config, operations=operations, device="meta", dtype=dtype or BODY_DTYPES.get(stored, torch.bfloat16)
    )
    shapes = {names[name]: shape for name, shape in header.shapes.items()}
    check_fit(module_shapes(network), shapes, f"{what}, a {KIND}")
    return fill_module(network, read_renamed(path_or_state, names, what), what=what, device=device), config


def read_network_config(path: str | os.PathLike) -> ModalityForcingConfig:
    """The config of a network file: the file's own, else inferred from the shapes."""
    header = read_header(path)
    return find_config(header, find_prefix(header, str(path)), str(path))


def save_network(
    path: str | os.PathLike,
    network: ModalityForcing,
    config: ModalityForcingConfig,
    extra_metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a network under the released tensor names, with its config as metadata, cast to `dtype` if not
    None.
    """
    return write_network(
        path, network, config.to_json(), extra_metadata, kind=KIND, prefix=PREFIX, dtype=dtype
    )


def read_base(path: str | os.PathLike, config: ModalityForcingConfig) -> dict[str, Tensor]:
    """Image and text weights of a plain FLUX.2 klein file, under our names: the base of a training run."""
    header = read_header(path)
    found = (name.removesuffix(FLUX2_MARKER) for name in header.shapes if name.endswith(FLUX2_MARKER))
    prefix = next((prefix for prefix in found if PREFIXES.fullmatch(prefix)), None)
    if prefix is None:
        raise WeightsError(
            f"Expected a FLUX.2 klein base network, got {path}, which is "
            f"{describe(header)}{explain_part(str(path))}. Give the base of the recipe's preset."
        )
    renamed = {name: _base_name(ours) for name, ours in own_names(header.shapes, prefix, str(path)).items()}
    kept = {name: ours for name, ours in renamed.items() if is_image_text(ours)}
    expected = {name: shape for name, shape in network_shapes(config).items() if is_image_text(name)}
    check_fit(
        expected, {ours: header.shapes[name] for name, ours in kept.items()}, f"{path}, a FLUX.2 network"
    )
    check_precisions({name: header.dtypes[name] for name in kept}, str(path))
    tensors = read_tensors(path)
    return {ours: tensors[name] for name, ours in kept.items()}


def _base_name(name: str) -> str:
    """FLUX.2 files name the scale of an RMS norm `scale` or `weight`."""
    return (
        name.removesuffix("weight") + "scale"
        if name.endswith(("query_norm.weight", "key_norm.weight"))
        else name
    )


def is_image_text(name: str) -> bool:
    """True for the parameters that plain FLUX.2 also has; `name` without prefix."""
    return not (
        name.startswith(("depth_", "cross_alpha_", "time_in_"))
        or ".depth_" in name
        or "modulation_depth." in name
    )


def network_shapes(config: ModalityForcingConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, without allocating any."""
    return module_shapes(ModalityForcing(config, device="meta"))


def find_prefix(header: Header, what: str, describe: Callable[[Header], str] = describe) -> str:
    """The prefix of the released names in this file; WeightsError says what another file is."""
    first = MARKERS[0]
    found = [name.removesuffix(first) for name in header.shapes if name.endswith(first)]
    found = [prefix for prefix in found if all(prefix + name in header.shapes for name in MARKERS)]
    prefix = next((prefix for prefix in found if PREFIXES.fullmatch(prefix)), None)
    if prefix is None:
        raise WeightsError(_explain_other(header, what, found, describe))
    if any(name.endswith(QUANTIZED) for name in header.shapes):
        raise WeightsError(
            f"Expected an unquantized {KIND}, got {what}, which is quantized. Load it through ComfyUI, or "
            "use the unquantized file."
        )
    if prefix + FIRST_VARIANT[0] not in header.shapes:
        raise WeightsError(
            f"Expected the published second variant of the {KIND} (flux_rgbd_9b_v2), got {what} of the "
            "first variant, in which no stream sees the other's timestep. Download flux_rgbd_9b_v2."
        )
    return prefix


def _explain_other(header: Header, what: str, prefixes: list[str], describe: Callable[[Header], str]) -> str:
    """What a file is whose names are not a whole network's, or have an unknown prefix."""
    if prefixes:
        keys = f"keys {PREFIX}{MARKERS[0]} and others"
        return (
            f'Expected the {keys} in {what}, got a {KIND} with "{prefixes[0]}" before its names. Strip '
            "that prefix."
        )
    if header.metadata.get(KIND_KEY) == KIND and not find_wrapper(header.shapes):
        missing = next(name for name in MARKERS if PREFIX + name not in header.shapes)
        part = explain_part(what) or "; it is damaged or one part of several. Download it again, whole"
        return f"Expected {PREFIX}{missing} in {what}, which its metadata calls a {KIND}, got none{part}."
    expected = f"a {KIND} (keys {PREFIX}{MARKERS[0]} and others)"
    remedy = explain_part(what) or ". Load a file of that kind"
    return f"Expected {expected}, got {what}, which is {describe(header)}{remedy}."


def own_names(names: Iterable[str], prefix: str, what: str) -> dict[str, str]:
    """Name in the file -> our name. WeightsError for two tensors of one name, of which one would be lost."""
    found: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        ours = found[name] = name.removeprefix(prefix).replace(COMPILED, "")
        if ours in seen:
            raise WeightsError(
                f"Expected one {ours} in {what}, got {seen[ours]!r} and {name!r}. Keep one set of weights in "
                "the file."
            )
        seen[ours] = name
    return found


def check_precisions(dtypes: Mapping[str, str], what: str) -> None:
    """Of the tensors that are not quantized; integers would need a scale that is not in the file."""
    check_dtypes(dtypes, BODY_DTYPES, what)


def find_config(header: Header, prefix: str, what: str) -> ModalityForcingConfig:
    """The config in a file's metadata, else the one inferred from its shapes.

    In a file whose metadata does not name our kind, `config` may be another program's: it is used if it gives
    a network of these shapes.
    """
    names = own_names(header.shapes, prefix, what)
    shapes = {names[name]: shape for name, shape in header.shapes.items()}
    stated, fault = None, None
    try:
        if "config" in header.metadata:
            stated = _read_config(header.metadata["config"], shapes)
    except NOT_A_NETWORK as error:
        fault = error
    if header.metadata.get(KIND_KEY) == KIND and "config" in header.metadata:
        if stated is None:
            raise WeightsError(
                f"Expected the sizes of a {KIND}, got {what}, which is damaged: {explain_fault(fault)}. "
                "Download it again."
            ) from fault
        return stated
    if stated is not None and network_shapes(stated) == shapes:
        return stated
    try:
        return config_from_shapes(shapes)
    except NOT_A_NETWORK as error:
        if stated is not None:
            return stated
        reason = explain_fault(error)
        raise WeightsError(
            f"Expected the sizes of a {KIND}, got {what}, which is damaged: {reason}{explain_part(what)}. "
            "Download it again."
        ) from error


def read_trained_size(header: Header, config: ModalityForcingConfig) -> int | None:
    """The side in pixels of the images that a network was trained on: the file's own statement, else its
    preset's; None if neither says it.
    """
    stated = header.metadata.get(TRAINED_SIZE, "")
    return int(stated) if stated.isdecimal() and 0 < len(stated) < 6 else find_trained_size(config)


def explain_fault(error: Exception | None) -> str:
    """The first sentence of an error, without its full stop: it stands inside another message."""
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    sentence = str(error).split(". ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:]


def _read_config(text: str, shapes: Shapes) -> ModalityForcingConfig:
    config = ModalityForcingConfig.from_json(json.loads(text))
    for kind in ("double", "single", "depth_decoder"):
        count = getattr(config, f"num_{kind}_blocks")
        if count > len(shapes):  # a number that large is not even looked for
            raise ValueError(
                f"Expected at most {len(shapes)} num_{kind}_blocks, the file's number of tensors, got {count}"
            )
    return config


def config_from_shapes(shapes: Shapes) -> ModalityForcingConfig:
    """Sizes inferred from tensor shapes (names without prefix). All RoPE axes are assumed equally wide."""
    hidden, in_channels = shapes["img_in.weight"]
    depth_channels = shapes["depth_in.weight"][1]
    counts = {
        field: len({name.split(".")[1] for name in shapes if name.startswith(f"{group}.")})
        for group, field in (
            ("double_blocks", "num_double_blocks"),
            ("single_blocks", "num_single_blocks"),
            ("depth_decoder_blocks", "num_depth_decoder_blocks"),
        )
    }
    head = next(shape[0] for name, shape in shapes.items() if name.endswith("query_norm.scale"))
    mlp = next(
        (shape[1] - hidden for name, shape in shapes.items() if name.endswith("linear2.weight")), 3 * hidden
    )
    return replace(
        PRESETS["klein_9b"],
        in_channels=in_channels,
        depth_channels=depth_channels,
        depth_patch=math.isqrt(depth_channels),
        depth_head_kernel=math.isqrt(shapes["depth_final_layer.linear.weight"][1] // hidden),
        context_in_dim=shapes["txt_in.weight"][1],
        hidden_size=hidden,
        num_heads=hidden // head,
        axes_dim=(head // 4,) * 4,
        mlp_ratio=mlp / hidden,
        time_embed_dim=shapes["time_in.in_layer.weight"][1],
        **counts,
    )
