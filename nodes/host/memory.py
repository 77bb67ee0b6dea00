"""What a model needs of the memory, said before its weights are read, and what to change when a run does not fit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import comfy.model_management
from comfy.model_patcher import ModelPatcher

logger = logging.getLogger("spatialweave.memory")
GB = 1e9
SMALLER_FILE = (
    "choose a smaller file of the model, in fp8 or nvfp4 (`spatialweave convert` writes them, in an installed clone of the repository)"
)
UNNAMED = ("DefaultCPUAllocator", "MPS backend out of memory")  # what torch says where it has no exception of its own for it


def report_need(path: str) -> None:
    """Log what a file of weights weighs, and what is free for it on the card and beside it."""
    device = comfy.model_management.get_torch_device()
    name, need = Path(path).name, Path(path).stat().st_size
    free, beside = (comfy.model_management.get_free_memory(place) for place in (device, comfy.model_management.unet_offload_device()))
    places = f"{free / GB:.2f} GB free on {device}"
    if not comfy.model_management.is_device_cpu(device):
        places += f", {beside / GB:.2f} GB beside it"
    logger.info("%s: %.2f GB of weights; %s.", name, need / GB, places)
    if need > max(free, beside):
        logger.warning(
            "%s is larger than the free memory: expect it to be slow, or use a smaller file, in fp8 or nvfp4 (`spatialweave convert` "
            "writes them, in an installed clone of the repository).", name,
        )  # fmt: skip


@contextlib.contextmanager
def explain_full_memory(patcher: ModelPatcher, shapes: Sequence[Sequence[int]], third: str = SMALLER_FILE) -> Iterator[None]:
    """Around a run: memory that is full becomes one sentence, of which `third` is the last remedy. Core still knows the fault by its type,
    and unloads the models."""
    try:
        yield
    except Exception as error:
        if not (comfy.model_management.is_oom(error) or any(words in str(error) for words in UNNAMED)):
            raise
        raise comfy.model_management.OOM_EXCEPTION(full_memory(patcher, shapes, third)) from error


def full_memory(patcher: ModelPatcher, shapes: Sequence[Sequence[int]], third: str) -> str:
    """Which run did not fit into what, and the three settings to change."""
    batch, (height, width) = shapes[-1][0], shapes[-1][-2:]
    total = comfy.model_management.get_total_memory(patcher.load_device)
    return (
        f"The memory of {patcher.load_device} ({total / GB:.1f} GB) is too small to sample {batch} x {height} x {width} (batch x height "
        f"x width) with {patcher.model_size() / GB:.1f} GB of weights: make the picture smaller, set the batch size to 1, or {third}."
    )
