"""Work on the images of a batch under ComfyUI's progress bar and its Cancel button."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import comfy.model_management
import comfy.utils

Item = TypeVar("Item")


def each_picture(pictures: Sequence[Item]) -> Iterator[Item]:
    """Iterate over a batch: each item moves the running node's bar; Cancel ends the node before the next."""
    bar = comfy.utils.ProgressBar(len(pictures))
    for picture in pictures:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield picture
        bar.update(1)
