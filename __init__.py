"""SpatialWeave: pictures with their depth, in ComfyUI and in plain Python."""

import logging

__version__ = "0.1.0"
NEEDS_COMFYUI = "0.33.0 or newer"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Give ComfyUI our nodes; imported late so that `import spatialweave` costs nothing and needs no ComfyUI."""
    try:
        from .nodes import Extension
    except Exception:  # ComfyUI logs a failure here as one line, without a traceback
        logging.getLogger("spatialweave").exception(f"SpatialWeave could not load its nodes; it needs ComfyUI {NEEDS_COMFYUI}.")
        raise
    return Extension()
