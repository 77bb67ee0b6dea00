"""Weights files to core objects: which file is selected, what it is, how core should hold it."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from ....models.core.weights.files import WeightsError, check_finite, check_fit, read_header
from ....models.core.weights.quantized_header import find_quantized_layers, plain_header
from ....models.core.weights.registry import find_published
from ....models.modality_forcing.pipeline import TINY_NETWORK
from ....models.modality_forcing.released import NETWORK, released_files
from ....models.modality_forcing.weights import (
    DEPTH_HEAD,
    check_precisions,
    find_config,
    find_prefix,
    network_shapes,
    own_names,
    read_trained_size,
)
from ....models.tiny.codec_colors import fit_colors
from ....models.tiny.weights import CODEC_FILE, TEXT_FILE, load_codec, load_text_encoder
from ..shared.file_kinds import describe_file
from ..shared.hosting import host_model, set_precision
from ..shared.memory import report_need
from ..shared.shipped import TINY
from ..shared.tiny_clip import tiny_clip
from ..shared.tiny_vae import TinyVAE
from .joint_model import JointConfig, keep_given
from .klein_parts import load_clip_and_vae
from .previews import note_depth, set_image_colors
from .refused_loras import refuse_other_networks

FOLDER = "diffusion_models"
TURNED_OFF = (
    ExecutionBlocker(
        "Expected with_clip_and_vae on in Load Modality Forcing for this output, got off. Turn it on, or "
        "connect Load CLIP and Load VAE."
    ),
) * 2


def list_models() -> list[str]:
    """The loader's choices: the shipped model, then core's diffusion_models folders."""
    return [TINY, *folder_paths.get_filename_list(FOLDER)]


def find_fault(name: str) -> str | None:
    """What is wrong with a choice of the loader, and what to do, in one message; else None."""
    if name in list_models():
        return None
    published = {file.name: file for file in released_files()}
    published_file = published.get(name, published[NETWORK])
    other = "" if name in published else "the published network is "
    clone = (
        f"in an installed clone of the repository `spatialweave weights download {published_file.name}` "
        "downloads it"
    )
    return (
        f"Expected {name} in ComfyUI's models/{FOLDER}, got no such file. Download it: "
        f"{other}{published_file.line} ({clone})."
    )


def load_modality_forcing(name: str, with_clip_and_vae: bool = True) -> tuple:
    """(MODEL, CLIP, VAE). A user's file is a network only: CLIP and VAE come from core's folders."""
    if name == TINY:
        return load_tiny_model(), *(load_tiny_clip_and_vae() if with_clip_and_vae else TURNED_OFF)
    fault = find_fault(name)
    if fault:
        raise WeightsError(fault)
    line = find_published(released_files(), NETWORK).line
    try:
        model = load_joint_model(folder_paths.get_full_path_or_raise(FOLDER, name))
    except WeightsError as error:
        raise WeightsError(f"{error} The published network is {line}.") from error
    return model, *(
        load_clip_and_vae(model.model.model_config.network.context_in_dim)
        if with_clip_and_vae
        else TURNED_OFF
    )


def load_tiny_model(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The shipped network, with the shipped codec's linear preview colors."""
    patcher = load_joint_model(str(TINY_NETWORK), disable_dynamic)
    set_image_colors(patcher, *fit_colors(load_codec(CODEC_FILE)))
    patcher.cached_patcher_init = (load_tiny_model, ())
    return patcher


def load_tiny_clip_and_vae() -> tuple:
    """(CLIP, VAE) that ship with the pack."""
    return tiny_clip(load_text_encoder(TEXT_FILE).state_dict()), TinyVAE(load_codec(CODEC_FILE).state_dict())


def load_joint_model(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from a safetensors file, quantized in one of core's formats or not.

    Any other kind of file is refused, with what it is, before its tensors are read.
    """
    stored = read_header(path)
    header, quantized = plain_header(path, stored), find_quantized_layers(path, stored)
    prefix = find_prefix(header, path, describe_file)
    network = find_config(header, prefix, path)
    names = own_names(header.shapes, prefix, path)
    check_fit(network_shapes(network), {names[name]: shape for name, shape in header.shapes.items()}, path)
    check_precisions(
        {
            name: found
            for name, found in header.dtypes.items()
            if name.removesuffix(".weight") not in quantized
        },
        path,
    )
    report_need(path)
    state, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    check_finite(state, path)
    # core's own format: a description beside each layer
    state, _ = comfy.utils.convert_old_quants(state, prefix, metadata=metadata)
    ours = own_names(state, prefix, path)
    state = {
        ours[name]: value.float() if value.dtype == torch.float64 else value for name, value in state.items()
    }

    config = JointConfig(network, read_trained_size(header, network))
    config.quant_config = comfy.utils.detect_layer_quantization(state, "")
    set_precision(config, state, comfy.model_management.get_torch_device())
    patcher = host_model(config.get_model(state), in_precision(state, config), disable_dynamic)
    patcher.cached_patcher_init = (load_joint_model, (path,))
    refuse_other_networks(patcher)
    for wrapper in (keep_given, note_depth):
        patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "spatialweave", wrapper)
    return patcher


def in_precision(state: dict[str, torch.Tensor], config: JointConfig) -> dict[str, torch.Tensor]:
    """The tensors as core will hold them: the depth head always in float32, and a small network entirely.

    Core may use a file's tensors themselves, without copying them into the model's own. A quantized layer is
    not changed.
    """
    small = config.supported_inference_dtypes == [torch.float32]
    quantized = tuple(name.removesuffix("comfy_quant") for name in state if name.endswith(".comfy_quant"))
    return {
        name: value.float()
        if (small or name.startswith(DEPTH_HEAD)) and not name.startswith(quantized)
        else value
        for name, value in state.items()
    }
