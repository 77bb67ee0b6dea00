"""The published files of VGGT, and the license of a file on disk."""

from __future__ import annotations

from pathlib import Path, PurePath

from ..core.weights.registry import PublishedFile, read_registry

NETWORK, COMMERCIAL = "vggt_1b.safetensors", "vggt_1b_commercial.safetensors"


def released_files() -> list[PublishedFile]:
    return read_registry(Path(__file__).with_name("released.json"))


def describe_license(path: str | PurePath, note: str | None = None) -> str:
    """One sentence for a VGGT file: by its own metadata (`note`), else by its name, else both licenses.

    The two published files have the same tensors, so nothing but a name tells them apart.
    """
    name = PurePath(path).name
    if note:
        return f"{name}: license {note}."
    known = {file.name: file.licence for file in released_files()}
    if name in known:
        return f"{name}: license {known[name]}, by its name."
    return (
        f"{name}: license unknown. VGGT-1B is under {known[NETWORK]}; VGGT-1B-Commercial under the "
        f"{known[COMMERCIAL]}. Name the file {NETWORK} or {COMMERCIAL} to have it shown."
    )
