"""The text encoder and VAE a network was trained with, by core's own loaders from core's folders."""

from __future__ import annotations

from pathlib import PurePath

import comfy.sd
import comfy.utils
import folder_paths
from comfy_execution.graph_utils import ExecutionBlocker

from ....models.core.weights.files import check_file, check_finite, read_header
from ....models.core.weights.registry import PublishedFile, find_published
from ....models.modality_forcing.released import TEXT_ENCODERS, VAE, released_files

MISSING = (
    "Expected the {what} of a Modality Forcing file in ComfyUI's folders, got none. Download it, or use "
    "{node}: {where}."
)


def load_clip_and_vae(width: int) -> tuple:
    """(CLIP, VAE) for a network of this context width. A missing file becomes a blocker that names it."""
    files = released_files()
    encoder = find_published(files, TEXT_ENCODERS[width]) if width in TEXT_ENCODERS else None
    vae = find_published(files, VAE)
    return load_clip(encoder, width), load_flux2_vae(vae)


def find_parts() -> list[str]:
    """Paths of the published encoders and VAE that are installed: the loader's result depends on them."""
    files = released_files()
    paths = (
        find_installed(find_published(files, name)) for name in dict.fromkeys((*TEXT_ENCODERS.values(), VAE))
    )
    return [path for path in paths if path]


def load_clip(encoder: PublishedFile | None, width: int):
    """As Load CLIP does, type flux2."""
    path = encoder and find_installed(encoder)
    if path is None:
        where = (
            encoder.line
            if encoder
            else f"the encoder it was trained with, whose prompts have the width {width}"
        )
        return ExecutionBlocker(
            MISSING.format(what="text encoder", node="Load CLIP, type flux2", where=where)
        )
    check_file(path)
    embeddings = folder_paths.get_folder_paths("embeddings")
    return comfy.sd.load_clip(
        ckpt_paths=[path], embedding_directory=embeddings, clip_type=comfy.sd.CLIPType.FLUX2
    )


def load_flux2_vae(vae: PublishedFile):
    """As Load VAE does."""
    path = find_installed(vae)
    if path is None:
        return ExecutionBlocker(MISSING.format(what="VAE", node="Load VAE", where=vae.line))
    read_header(path)
    state, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    check_finite(state, path)
    made = comfy.sd.VAE(sd=state, metadata=metadata)
    made.throw_exception_if_invalid()
    # core calls this to load it again on another device
    made.patcher.cached_patcher_init = (comfy.sd.load_vae_patcher, (path, metadata, None))
    return made


def find_installed(file: PublishedFile) -> str | None:
    """Where core finds a published file, in any folder below its own."""
    found = next(
        (name for name in folder_paths.get_filename_list(file.folder) if PurePath(name).name == file.name),
        None,
    )
    return found and folder_paths.get_full_path(file.folder, found)
