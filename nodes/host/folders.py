"""ComfyUI's input and output folders, by its own rules for names, counters and what may be reached."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...models.core.export.depth_files import SUFFIXES, write_depth
from ...models.core.geometry.view import View


def list_depth_files() -> list[str]:
    """Names in the input folder that could hold a depth."""
    folder = Path(folder_paths.get_input_directory())
    return sorted(found.name for found in folder.iterdir() if found.suffix.lower() in SUFFIXES and found.is_file())


def input_file(name: str) -> Path:
    """A file of the input folder, or, named "x.png [output]", of another; nothing outside them can be reached."""
    return Path(folder_paths.get_annotated_filepath(name))


def is_input_file(name: str) -> bool:
    return folder_paths.exists_annotated_filepath(name)


def save_depth(view: View, prefix: str, kind: str, *, scale: float | None, picture: bool) -> list[dict[str, str]]:
    """Write a View into the output folder, counting on as core's savers do; the files as core's history lists them.

    A PNG or EXR holds one picture, an NPZ the batch. ValueError if the prefix leads out of the folder.
    """
    output = folder_paths.get_output_directory()
    if not folder_paths.is_within_directory(output, os.path.join(output, os.path.dirname(os.path.normpath(prefix)))):
        raise ValueError(f"The prefix {prefix!r} leads out of the output folder; give a name, or a folder and a name, inside it.")
    height, width = view.depth.shape[-2:]
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    parts = [view] if kind == "npz" else [view[index] for index in range(len(view))]
    files = []
    for number, part in enumerate(parts, counter):
        name = f"{stem}_{number:05}_.{kind}"
        write_depth(os.path.join(folder, name), part, scale=scale, picture=picture)
        files.append({"filename": name, "subfolder": subfolder, "type": "output"})
    return files
