"""A network in one of core's model classes, as a core MODEL: precision and memory are core's to choose."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from ....models.core.weights.files import read_tensors
from ....models.core.weights.header import Header

SMALL = 100_000_000  # parameters below which half precision saves too little memory for its error


def host_model(
    model, state: dict[str, torch.Tensor], disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """One of core's models with its network's weights, in core's memory management."""
    load_device, offload_device = (
        comfy.model_management.get_torch_device(),
        comfy.model_management.unet_offload_device(),
    )
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=load_device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.diffusion_model.load_state_dict(state, strict=True, assign=patcher.is_dynamic())
    return patcher


def read_tensor_file(path: str, header: Header) -> dict[str, torch.Tensor]:
    """The tensors of a file by core's reader, which maps them into memory; by ours where matrices are in the
    eight bits that core's does not know."""
    return read_tensors(path) if header.scales else comfy.utils.load_torch_file(path, safe_load=True)


def set_precision(config, state: dict, device: torch.device) -> None:
    """Core's precision for this device; float32 for a small network; a quantized file: the device's."""
    values = comfy.utils.calculate_parameters(state)
    if values < SMALL:
        config.supported_inference_dtypes = [torch.float32]
    choices = config.supported_inference_dtypes
    weights = None if config.quant_config else comfy.utils.weight_dtype(state)
    dtype = comfy.model_management.unet_dtype(
        model_params=values, supported_dtypes=choices, weight_dtype=weights
    )
    cast = comfy.model_management.unet_manual_cast(None if config.quant_config else dtype, device, choices)
    config.set_inference_dtype(dtype, cast)
