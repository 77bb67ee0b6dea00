"""A VGGT network in core's memory management, with core's attention, progress bar and Cancel button."""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ....models.vggt.config import VggtConfig
from ....models.vggt.memory import estimate_memory, result_bytes
from ....models.vggt.network import Prediction, Vggt
from ....models.vggt.pipeline import GeometryTokens, Inputs, to_tokens
from ..shared.hosting import SMALL
from ..shared.memory import GB, explain_full_memory

logger = logging.getLogger("spatialweave.vggt")
SUPPORTED = [torch.bfloat16, torch.float32]  # float16 overflows
REMEDIES = "take fewer views, a smaller longer_side, or global_queries of about 4096"


class VggtModel:
    """The output of Load VGGT: the network in core's model patcher, as core's own MoGe model is."""

    def __init__(self, config: VggtConfig, state: dict[str, Tensor], what: str, notes: tuple[str, ...]):
        """`state` has our names and may be of any precision; it is used, not copied, where it fits."""
        self.config, self.what, self.notes = config, what, notes
        device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        self.dtype = choose_dtype(state, device)
        factory_kwargs = {"operations": comfy.ops.manual_cast, "device": offload, "dtype": self.dtype}
        network = Vggt(config, **factory_kwargs).train(False)
        patcher = comfy.model_patcher.CoreModelPatcher
        self.patcher = patcher(network, load_device=device, offload_device=offload)
        own = {name: value.dtype for name, value in network.state_dict().items()}
        cast = {name: value.to(own[name]) for name, value in state.items()}
        network.load_state_dict(cast, strict=True, assign=self.patcher.is_dynamic())

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def predict(self, inputs: Inputs, heads: tuple[str, ...], queries: int) -> Prediction:
        """Outputs of `heads` for framed images."""
        on_part = follow(self.patcher.model.count_parts(inputs.framed.shape[1], heads))

        def work(network: Vggt, framed: Tensor) -> Prediction:
            return network(framed, heads=heads, attend=attend_by_core, queries=queries, on_part=on_part)

        return self.run(work, inputs)

    def encode(self, inputs: Inputs, queries: int) -> GeometryTokens:
        """The last entry of the aggregator."""
        last, on_part = self.config.depth - 1, follow(self.patcher.model.count_parts(0, ()))

        def work(network: Vggt, framed: Tensor) -> Tensor:
            kept = network.aggregator(framed, [last], attend=attend_by_core, queries=queries, on_part=on_part)
            return kept.layers[last]

        return to_tokens(self.run(work, inputs), inputs, self.config)

    def run(self, work: Callable, inputs: Inputs):
        """Load the weights, with memory free for the activations, and call `work` without gradients."""
        views, (height, width) = inputs.framed.shape[1], inputs.size
        need = estimate_memory(self.config, views, inputs.size, self.dtype.itemsize)
        logger.info(self.describe_need(inputs))

        def describe() -> str:
            return f"reconstruct {views} views of {width} x {height} pixels, which takes {need / GB:.2f} GB"

        with explain_full_memory(self.device, describe, REMEDIES), torch.no_grad():
            comfy.model_management.load_models_gpu([self.patcher], memory_required=need)
            return work(self.patcher.model, inputs.framed.to(self.device))

    def describe_need(self, inputs: Inputs) -> str:
        """A sentence on views, size and memory of a run."""
        views, (height, width) = inputs.framed.shape[1], inputs.size
        need = estimate_memory(self.config, views, inputs.size, self.dtype.itemsize)
        free = comfy.model_management.get_free_memory(self.device)
        return (
            f"{views} view{'s' if views > 1 else ''} at {width} x {height} pixels: about {need / GB:.2f} GB "
            f"beside {self.patcher.model_size() / GB:.2f} GB of weights; {free / GB:.2f} GB free on "
            f"{self.device}. The result takes {result_bytes(inputs.frames) / GB:.2f} GB of main memory."
        )


def choose_dtype(state: dict[str, Tensor], device: torch.device) -> torch.dtype:
    """Precision of the body: bfloat16 where the device computes in it, and float32 for a small network."""
    count = comfy.utils.calculate_parameters(state)
    if count < SMALL:
        return torch.float32
    dtype = comfy.model_management.unet_dtype(device, model_params=count, supported_dtypes=SUPPORTED)
    in_bfloat16 = dtype == torch.bfloat16 and comfy.model_management.should_use_bf16(device)
    return torch.bfloat16 if in_bfloat16 else torch.float32


def attend_by_core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Core's attention, in the backend that it was started with."""
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True)


def follow(parts: int) -> Callable[[], None]:
    """A callback for `on_part` that advances the node's progress bar and ends the run after Cancel."""
    bar = comfy.utils.ProgressBar(parts)

    def on_part() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return on_part
