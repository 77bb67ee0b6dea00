"""A geometry connector in core's memory management, and its files."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ....models.core.weights.files import WeightsError, check_finite, read_header
from ....models.spatial_diff.config import ConnectorConfig
from ....models.spatial_diff.network import GeometryConnector
from ....models.spatial_diff.weights import HEAD, TINY_CONNECTOR, check_header
from ..shared.file_kinds import describe_file
from ..shared.hosting import SMALL, read_tensor_file
from ..shared.memory import explain_full_memory, report_need
from ..shared.shipped import TINY

FOLDER = "model_patches"  # core's, for small networks that extend a model
SUPPORTED = [torch.bfloat16, torch.float32]
REMEDIES = "take a smaller image batch, or a machine with more memory"


class ConnectorModel:
    """What Load Geometry Connector gives: the network under core's patcher."""

    def __init__(self, config: ConnectorConfig, state: dict[str, Tensor], what: str):
        """`state` has our names, in any floating precision; it is used, not copied, where it fits."""
        self.config, self.what = config, what
        device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        self.dtype = connector_dtype(state, device)
        network = GeometryConnector(
            config, operations=comfy.ops.manual_cast, device=offload, dtype=self.dtype
        ).train(False)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            network, load_device=device, offload_device=offload
        )
        cast = {name: value.to(self.dtype) for name, value in state.items()}
        network.load_state_dict(cast, strict=True, assign=self.patcher.is_dynamic())

    def run(self, geometry: Tensor) -> Tensor:
        """Geometry tokens (v, n, c) -> tokens (v, q, width) of the editor's sequence, on the CPU, float32."""
        need = self.estimate_memory(geometry)
        device = self.patcher.load_device

        def describe() -> str:
            return f"run the geometry connector on {geometry.shape[0]} x {geometry.shape[1]} tokens"

        with explain_full_memory(device, describe, REMEDIES), torch.no_grad():
            comfy.model_management.load_models_gpu([self.patcher], memory_required=need)
            tokens = self.patcher.model(geometry.to(device, self.dtype), attend=core_attention)
        return tokens.float().cpu()

    def estimate_memory(self, geometry: Tensor) -> int:
        """Bytes beside the weights: keys, values and the feed-forward's hidden layer of one layer."""
        config, (views, count, _) = self.config, geometry.shape
        keys = count * (2 * config.inner_width + config.geometry_width)
        hidden = config.queries * int(config.width * (2 + config.mlp_ratio))
        scores = config.heads * config.queries * count  # where the attention writes them out
        return views * (keys + hidden + scores) * self.dtype.itemsize


def core_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Core's attention, whichever was chosen at its start."""
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True)


def connector_dtype(state: dict[str, Tensor], device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, and float32 for a small network."""
    if comfy.utils.calculate_parameters(state) < SMALL:
        return torch.float32
    in_bfloat16 = comfy.model_management.should_use_bf16(device)
    return torch.bfloat16 if in_bfloat16 else torch.float32


def list_connector_files() -> list[str]:
    """What the loader offers: the tiny editor's connector, then the files of core's model_patches."""
    return [TINY, *folder_paths.get_filename_list(FOLDER)]


def find_connector_fault(name: str) -> str | None:
    """What is wrong with a choice of the loader, and the remedy, in one sentence; else None."""
    if name in list_connector_files():
        return None
    return (
        f"Expected {name} in ComfyUI's models/{FOLDER}, got no such file. Put a geometry connector there: "
        "SpatialDiff's training writes it (in an installed clone of the repository)."
    )


def load_connector_file(name: str) -> ConnectorModel:
    """A connector, which is examined before its tensors are read."""
    fault = find_connector_fault(name)
    if fault:
        raise WeightsError(fault)
    path = str(TINY_CONNECTOR) if name == TINY else folder_paths.get_full_path_or_raise(FOLDER, name)
    header = read_header(path)
    config = check_header(header, path, describe_file)
    report_need(path, REMEDIES)
    state = read_tensor_file(path, header)
    state = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    check_finite(state, path)
    return ConnectorModel(config, state, path)


def describe_connector(connector: ConnectorModel) -> list[str]:
    """What a connector is for, in a line."""
    config = connector.config
    rows, columns = config.grid
    return [
        f"For {config.base} editors of width {config.width} and geometry tokens of {config.geometry_width} "
        f"channels: {rows} x {columns} tokens, {config.layers} layers, first id {config.first_axis:g}."
    ]
