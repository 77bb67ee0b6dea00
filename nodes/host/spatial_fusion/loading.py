"""Depth adapter files of ComfyUI's folders."""

from __future__ import annotations

import folder_paths

from ....models.spatial_fusion.network import AdapterNetwork
from ....models.spatial_fusion.weights import TINY_ADAPTER, load_adapter
from ..shared.file_kinds import describe_file
from ..shared.shipped import TINY

FOLDER = "model_patches"


def list_adapters() -> list[str]:
    """What the loader offers: the shipped adapter, then core's model_patches folders."""
    return [TINY, *folder_paths.get_filename_list(FOLDER)]


def find_adapter_fault(name: str) -> str | None:
    """What is wrong with a choice of the loader, and the remedy, in one sentence; else None."""
    if name in list_adapters():
        return None
    return (
        f"Expected {name} in ComfyUI's models/{FOLDER}, got no such file. Put a depth adapter there, or "
        "choose another."
    )


def load_adapter_file(name: str) -> tuple[AdapterNetwork, str]:
    """(the adapter, what it is for) of a file; another kind of file is refused by what it is."""
    path = TINY_ADAPTER if name == TINY else folder_paths.get_full_path_or_raise(FOLDER, name)
    adapter = load_adapter(path, describe_file)
    values = sum(value.numel() for value in adapter.state_dict().values())
    return adapter, f"A depth adapter for {adapter.config.described}, {values:,} parameters."
