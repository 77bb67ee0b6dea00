"""SpatialWeave: images with depth and other geometry, in ComfyUI and in plain Python."""

import logging

__version__ = "0.1.0"
NEEDS_COMFYUI = "0.33.0"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The nodes for ComfyUI, imported late: `import spatialweave` alone is cheap and needs no ComfyUI."""
    try:
        from .nodes import Extension
    except Exception as error:  # ComfyUI logs one line of it, without a traceback
        found = _find_comfyui()
        if found and _read_version(found) < _read_version(NEEDS_COMFYUI):
            notice = (
                f"SpatialWeave {__version__} needs ComfyUI {NEEDS_COMFYUI} or newer, and this is {found}; "
                "update ComfyUI."
            )
            raise ImportError(notice) from error
        logging.getLogger("spatialweave").exception("SpatialWeave could not load its nodes:")
        raise
    return Extension()


def _find_comfyui() -> str:
    """The version of the running ComfyUI, "" if unknown."""
    try:
        from comfyui_version import __version__ as found
    except ImportError:
        return ""
    return found


def _read_version(text: str) -> list[int]:
    """'0.33.0' as [0, 33, 0], to compare; a part that is not a number is 0: '0.33.0-rc1' equals '0.33.0'."""
    return [int(part) if part.isdigit() else 0 for part in text.split(".")]
