"""VGGT files to a network in core's memory management."""

from __future__ import annotations

import folder_paths

from ....models.core.weights.files import (
    WeightsError,
    check_finite,
    check_fit,
    read_header,
)
from ....models.core.weights.registry import find_published
from ....models.vggt.pipeline import TINY_NETWORK
from ....models.vggt.released import NETWORK, describe_license, released_files
from ....models.vggt.weights import (
    TRACKING,
    check_precisions,
    find_config,
    network_shapes,
    own_names,
)
from ..shared.file_kinds import describe_file
from ..shared.hosting import read_tensor_file
from ..shared.memory import report_need
from ..shared.shipped import TINY
from .model import VggtModel

FOLDER = "geometry_estimation"


def list_vggt_files() -> list[str]:
    """The loader's options: the shipped network, then the files of core's geometry_estimation folders."""
    return [TINY, *folder_paths.get_filename_list(FOLDER)]


def find_vggt_fault(name: str) -> str | None:
    """Why a choice of the loader cannot be loaded, and the remedy, in one sentence; else None."""
    if name in list_vggt_files():
        return None
    published = {file.name: file for file in released_files()}
    wanted = published.get(name, published[NETWORK])
    other = "" if name in published else "The published network is "
    return (
        f"Expected {name} in ComfyUI's models/{FOLDER}, got no such file. {other}{wanted.line} (in an "
        f"installed clone of the repository `spatialweave weights download {wanted.name}` fetches it)."
    )


def load_vggt(name: str) -> VggtModel:
    """The shipped network, or a file of the folder; WeightsError names the kind of any other file."""
    if name == TINY:
        return load_vggt_file(str(TINY_NETWORK))
    fault = find_vggt_fault(name)
    if fault:
        raise WeightsError(fault)
    try:
        return load_vggt_file(folder_paths.get_full_path_or_raise(FOLDER, name))
    except WeightsError as error:
        line = find_published(released_files(), NETWORK).line
        raise WeightsError(f"{str(error).removesuffix('.')}. The published network is {line}.") from error


def load_vggt_file(path: str) -> VggtModel:
    """A network from a safetensors file, whose header is validated before its tensors are read."""
    header = read_header(path)
    names = own_names(header, path, describe_file)
    check_precisions(header, names, path)
    shapes = {ours: header.shapes[name] for name, ours in names.items()}
    config = find_config(header, shapes, path)
    check_fit(network_shapes(config), shapes, path)
    report_need(path, "take fewer views, or a machine with more memory")
    state = read_tensor_file(path, header)
    state = {ours: state[name] for name, ours in names.items()}
    check_finite(state, path)
    left_out = len(header.shapes) - len(names)
    shipped = path == str(TINY_NETWORK)  # under the pack's own license, which asks nothing of a user
    notes = [] if shipped else [describe_license(path, header.metadata.get("license"))]
    if left_out:
        notes.append(f"{left_out} tensors of {TRACKING}* are left out: nothing here tracks points.")
    return VggtModel(config, state, path, tuple(notes))
