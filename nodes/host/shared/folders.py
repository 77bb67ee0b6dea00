"""ComfyUI's input and output folders, by its own rules for names, counters and allowed paths."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import comfy.cli_args
import folder_paths
from torch import Tensor

from ....models.core.export.depth_files import may_hold_depth, write_depth
from ....models.core.export.files import export_error
from ....models.core.export.scene_folder import Layout, SceneFolder, write_scene_folder
from ....models.core.geometry.fusion import FusedCloud
from ....models.core.geometry.view import View
from ....models.core.pictures import read_pictures
from .progress import each_picture


def list_depth_files() -> list[str]:
    """Depth files in the input folder, then those in the output folder and its subfolders, where Save Depth
    writes.
    """
    given, saved = Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())
    loose = [found.name for found in given.iterdir() if found.is_file() and may_hold_depth(found)]
    written = [
        Path(name).as_posix()
        for name in folder_paths.recursive_search(str(saved))[0]
        if may_hold_depth(saved / name)
    ]
    return sorted(loose) + [f"{name} [output]" for name in sorted(written)]


def input_file(name: str) -> Path:
    """A file of the input folder, or of another as in "x.png [output]"; files outside these folders are
    refused.
    """
    return Path(folder_paths.get_annotated_filepath(name))


def is_input_file(name: str) -> bool:
    return folder_paths.exists_annotated_filepath(name)


def graph_notes(hidden) -> dict[str, str]:
    """The graph under core's metadata names; empty with --disable-metadata."""
    if comfy.cli_args.args.disable_metadata or not hidden:
        return {}
    graph = {"prompt": hidden.prompt} | (hidden.extra_pnginfo or {})
    return {name: json.dumps(value) for name, value in graph.items() if value is not None}


def save_depth(
    view: View, prefix: str, kind: str, *, scale: float | None, picture: bool, notes: Mapping[str, str]
) -> list[dict[str, str]]:
    """Write a View into the output folder with core's file counter; returns the files as core's history lists
    them.

    A PNG or EXR holds one image, an NPZ the batch; all hold ``notes``. ValueError if the prefix is outside
    the folder.
    """
    folder, stem, counter, subfolder = find_free_name(prefix, *view.depth.shape[-2:])
    parts = [view] if kind == "npz" else [view[index] for index in range(len(view))]
    files = []
    for index, part in enumerate(each_picture(parts)):
        name = f"{stem.replace('%batch_num%', str(index))}_{counter + index:05}_.{kind}"
        write_depth(os.path.join(folder, name), part, scale=scale, picture=picture, notes=notes)
        files.append({"filename": name, "subfolder": subfolder, "type": "output"})
    return files


def save_scene(
    fused: FusedCloud, prefix: str, layout: Layout, images: Tensor | None = None
) -> tuple[SceneFolder, list[dict[str, str]]]:
    """Write a trainer's folder into the output folder, numbered as core's savers number files.

    Returns what was written, and its files as core's history lists them.
    """
    folder, stem, counter, subfolder = find_free_name(prefix, *fused.views.depth.shape[-2:])
    name = f"{stem}_{counter:05}_"
    images = None if images is None else read_pictures(images).rgb
    written = write_scene_folder(Path(folder) / name, fused, layout=layout, images=images, each=each_picture)
    places = [os.path.split(os.path.join(subfolder, name, file)) for file in written.files]
    return written, [{"filename": file, "subfolder": place, "type": "output"} for place, file in places]


def find_free_name(prefix: str, height: int = 0, width: int = 0) -> tuple[str, str, int, str]:
    """Folder, stem, first free number and subfolder of a prefix; ValueError if it has no file name, or leads
    out of the output folder.
    """
    if os.path.basename(os.path.normpath(prefix.strip())) == ".":
        raise ValueError(
            f"Expected a file name in filename_prefix, got {prefix!r}, which would give a hidden file. Give "
            "a name, or a folder and a name."
        )
    output = folder_paths.get_output_directory()
    folder = os.path.join(output, os.path.dirname(os.path.normpath(prefix)))
    if not folder_paths.is_within_directory(output, folder):
        raise ValueError(
            f"Expected a prefix inside the output folder, got {prefix!r}, which leads out of it. Give a "
            "name, or a folder and a name."
        )
    try:
        return folder_paths.get_save_image_path(prefix, output, width, height)[:4]
    except OSError as error:
        raise export_error(error, Path(folder)) from error
