"""Images shown under a node, through ComfyUI's temporary folder."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import ui
from torch import Tensor

from ....models.core.export.files import export_error


def preview_images(images: Tensor, node: type) -> ui.PreviewImage:
    """Core's preview of images (b, h, w, 3) for a node.

    ExportError where they cannot be written, which leaves no part of them.
    """
    folder = Path(folder_paths.get_temp_directory())
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    try:
        return ui.PreviewImage(images, cls=node)
    except OSError as error:
        for name in set(os.listdir(folder)) - before if folder.is_dir() else ():
            (folder / name).unlink(missing_ok=True)
        raise export_error(error, folder / "preview.png") from error
