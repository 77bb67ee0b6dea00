"""Work on the pictures of a batch under ComfyUI's progress bar and its Cancel button."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import comfy.model_management
import comfy.utils

Item = TypeVar("Item")


def each_picture(pictures: Sequence[Item]) -> Iterator[Item]:
    """The pictures one by one; each one done moves the running node's bar, and Cancel ends the node before
    the next one begins.
    """
    bar = comfy.utils.ProgressBar(len(pictures))
    for picture in pictures:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield picture
        bar.update(1)
