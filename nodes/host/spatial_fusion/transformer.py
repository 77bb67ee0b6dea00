"""A spatial transformer in core's memory management, with core's progress bar and Cancel; its files."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ....models.core.geometry.view import View
from ....models.core.pictures import read_pictures
from ....models.core.weights.files import WeightsError, check_finite, read_header
from ....models.spatial_fusion.config import SpatialTransformerConfig
from ....models.spatial_fusion.network import (
    InferredDepth,
    SemanticState,
    SpatialTransformer,
    plan_depth,
)
from ....models.spatial_fusion.pipeline import infer_view
from ....models.spatial_fusion.weights import examine_spatial_transformer
from ..shared.file_kinds import describe_file
from ..shared.hosting import SMALL, read_tensor_file
from ..shared.last_resort import describe
from ..shared.memory import explain_full_memory, report_need
from .semantic import encode_prompts, to_device

FOLDER = "model_patches"
REMEDIES = "take fewer prompts or images at once, or a machine with more memory"
TRAIN = "SpatialFusion's training writes it (in an installed clone of the repository)"


class SpatialTransformerModel:
    """The output of Load Spatial Transformer: the network under core's patcher."""

    def __init__(self, config: SpatialTransformerConfig, state: dict[str, Tensor], what: str):
        """`state` has our names, in any floating precision; it is used, not copied, where it fits."""
        self.config, self.what = config, what
        device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        self.dtype = transformer_dtype(state, device)
        network = SpatialTransformer(
            config, operations=comfy.ops.manual_cast, device=offload, dtype=self.dtype
        ).train(False)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            network, load_device=device, offload_device=offload
        )
        own = {name: value.dtype for name, value in network.state_dict().items()}
        cast = {name: value.to(own[name]) for name, value in state.items()}
        network.load_state_dict(cast, strict=True, assign=self.patcher.is_dynamic())

    def infer(
        self, semantic: SemanticState, grid: tuple[int, int], size: tuple[int, int], *, image: Tensor | None
    ) -> InferredDepth:
        """The network's call, with its weights loaded and memory free for the activations."""
        count = max(len(semantic.lengths), 1 if image is None else len(image))
        device, need = self.patcher.load_device, self.estimate_memory(count, max(semantic.lengths), size)
        blocks = self.config.layers + (0 if image is None else self.config.encoder_depth)
        bar = comfy.utils.ProgressBar(blocks)

        def on_layer() -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(1)

        def work() -> str:
            return f"infer {count} depth maps of {size[1]} x {size[0]} pixels"

        with explain_full_memory(device, work, REMEDIES), torch.no_grad():
            comfy.model_management.load_models_gpu([self.patcher], memory_required=need)
            given = None if image is None else image.to(device, self.dtype)
            prompts = to_device(semantic, device, self.dtype)
            return self.patcher.model(prompts, grid, size, image=given, on_layer=on_layer)

    def estimate_memory(self, count: int, text: int, size: tuple[int, int]) -> int:
        """Bytes beside the weights: one layer's activations, the four taps, and the last maps of the head."""
        config = self.config
        tokens = size[0] * size[1] // config.patch**2 + 1
        keys = 2 * (tokens + text) * config.kv_heads * config.head_dim * len(set(config.pairs))
        layer = tokens * (3 * config.width + 2 * config.ffn_width + 2 * config.heads * config.head_dim)
        head = 4 * (4 * tokens * config.width + 4 * size[0] * size[1] * config.dpt_features)  # float32
        return count * ((keys + layer) * self.dtype.itemsize + head)


def transformer_dtype(state: dict[str, Tensor], device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, and float32 for a small network."""
    if comfy.utils.calculate_parameters(state) < SMALL:
        return torch.float32
    in_bfloat16 = comfy.model_management.should_use_bf16(device)
    return torch.bfloat16 if in_bfloat16 else torch.float32


def list_transformer_files() -> list[str]:
    """What the loader offers: the files of core's model_patches folders."""
    return folder_paths.get_filename_list(FOLDER)


def find_transformer_fault(name: str) -> str | None:
    """What is wrong with a choice of the loader, and the remedy, in one sentence; else None."""
    if name in list_transformer_files():
        return None
    return (
        f"Expected {name or 'a file'} in ComfyUI's models/{FOLDER}, got no such file. Put a spatial "
        f"transformer there: {TRAIN}."
    )


def load_transformer_file(name: str) -> SpatialTransformerModel:
    """A spatial transformer, whose header is examined before its tensors are read."""
    fault = find_transformer_fault(name)
    if fault:
        raise WeightsError(fault)
    path = folder_paths.get_full_path_or_raise(FOLDER, name)
    header = read_header(path)
    config = examine_spatial_transformer(header, path, describe_file)
    report_need(path, REMEDIES)
    state = read_tensor_file(path, header)
    check_finite(state, path)
    return SpatialTransformerModel(config, state, path)


def describe_transformer(transformer: SpatialTransformerModel) -> str:
    """What a spatial transformer is for, in a line."""
    config = transformer.config
    values = sum(value.numel() for value in transformer.patcher.model.parameters())
    return (
        f"A spatial transformer for {config.described}: {config.layers} layers, {config.pairing} pairing, "
        f"{values:,} parameters."
    )


def infer_from_prompts(
    clip, transformer: SpatialTransformerModel, prompts: list[str], size: tuple[int, int],
    images: list[Tensor] | None,
) -> tuple[View, list[str]]:  # fmt: skip
    """The VIEW of images (height, width) of prompts, for edits with the aspect of their sources; notes."""
    if not isinstance(transformer, SpatialTransformerModel):
        raise ValueError(
            f"Expected a spatial transformer, got {describe(transformer)}. Wire that of Load Spatial "
            "Transformer."
        )
    image, notes = join_sources(images)
    if image is not None:
        size = tuple(image.shape[1:3])
        check_counts(len(prompts), len(image))
    semantic, more = encode_prompts(clip, prompts, transformer.config)
    view = infer_view(transformer.infer, transformer.config, semantic, size, image)
    grid, (height, width) = plan_depth(transformer.config, size)
    found = f"{len(view)} depth map{'s' if len(view) > 1 else ''} of {width} x {height} pixels"
    of = "the source image's" if image is not None else "the"
    aspect = f"of {of} aspect {size[1]} x {size[0]}, from {grid[0]} x {grid[1]} queries"
    return view, [f"{found}, {aspect}.", *notes, *more]


def join_sources(images: list[Tensor] | None) -> tuple[Tensor | None, list[str]]:
    """The source images (b, h, w, 3) in [0, 1] of an input that takes lists, and notes."""
    batches = [batch for batch in images or [] if batch is not None]
    if not batches:
        return None, []
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            raise ValueError(
                f"Expected IMAGE (b, h, w, 3) at image, got {describe(batch)}. Connect a node that outputs "
                "one."
            )
    sizes = {tuple(batch.shape[1:3]) for batch in batches}
    if len(sizes) > 1:
        named = " and ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(
            f"Expected source images of one size, got {named}. Resize them, or use the node once for each."
        )
    found = [read_pictures(batch) for batch in batches]
    notes = list(dict.fromkeys(note for pictures in found for note in pictures.notes))
    return torch.cat([pictures.rgb for pictures in found]), notes


def check_counts(prompts: int, images: int) -> None:
    """Before anything runs: one prompt for all images, one image for all prompts, or as many of each."""
    if prompts != images and 1 not in (prompts, images):
        raise ValueError(
            f"Expected as many prompts as source images, or one of either, got {prompts} prompts and "
            f"{images} images. Change one of them."
        )
