"""SpatialWeave: pictures with their depth, in ComfyUI and in plain Python."""

import logging

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Give ComfyUI our nodes; imported late so that `import spatialweave` costs nothing and needs no ComfyUI."""
    try:
        from .nodes import Extension
    except Exception:
        logging.getLogger("spatialweave").exception("SpatialWeave could not load its nodes")  # ComfyUI logs no traceback
        raise
    return Extension()
