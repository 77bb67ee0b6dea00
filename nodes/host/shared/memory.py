"""A model's memory use, logged before its weights are read, and what to change when a run does not fit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import comfy.model_management
from comfy.model_patcher import ModelPatcher

logger = logging.getLogger("spatialweave.memory")
GB = 1e9
SMALLER_FILE = (
    "choose a smaller file of the model, in fp8 or nvfp4 (`spatialweave convert` writes them, in an "
    "installed clone of the repository)"
)
USE_SMALLER = (
    "use a smaller file, in fp8 or nvfp4 (`spatialweave convert` writes them, in an installed clone of the "
    "repository)"
)
UNNAMED = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
)  # torch's messages where it has no exception type for it


def report_need(path: str, remedy: str = USE_SMALLER) -> None:
    """Log the size of a weights file and the free memory on the device and beside it."""
    device = comfy.model_management.get_torch_device()
    name, need = Path(path).name, Path(path).stat().st_size
    free, beside = (
        comfy.model_management.get_free_memory(at)
        for at in (device, comfy.model_management.unet_offload_device())
    )
    free_text = f"{free / GB:.2f} GB free on {device}"
    if not comfy.model_management.is_device_cpu(device):
        free_text += f", {beside / GB:.2f} GB beside it"
    logger.info("%s: %.2f GB of weights; %s.", name, need / GB, free_text)
    if need > max(free, beside):
        logger.warning(
            "%s is larger than the free memory: expect it to be slow, or %s.", name, remedy,
        )  # fmt: skip


@contextlib.contextmanager
def explain_full_memory(device, work: Callable[[], str], remedies: str) -> Iterator[None]:
    """Around work on a device: an out-of-memory error becomes one sentence, of what the work was and what to
    change. Core still recognizes its type, and unloads the models.
    """
    try:
        yield
    except Exception as error:
        if not (comfy.model_management.is_oom(error) or any(words in str(error) for words in UNNAMED)):
            raise
        total = comfy.model_management.get_total_memory(device) / GB
        sentence = (
            f"Expected more memory than the {total:.1f} GB of {device} to {work()}, got an out-of-memory "
            f"error. To reduce it, {remedies}."
        )
        raise comfy.model_management.OOM_EXCEPTION(sentence) from error


def explain_sampling(
    patcher: ModelPatcher, shapes: Sequence[Sequence[int]], third: str = SMALLER_FILE
) -> AbstractContextManager[None]:
    """Around sampling of `shapes`, the last of which is (batch, ..., height, width). `third`: a remedy."""

    def work() -> str:
        size = " x ".join(map(str, (shapes[-1][0], *shapes[-1][-2:])))
        return f"sample {size} (batch x height x width) with {patcher.model_size() / GB:.1f} GB of weights"

    return explain_full_memory(
        patcher.load_device, work, f"make the image smaller, set the batch size to 1, or {third}"
    )
