"""Laid into the soak's custom_nodes: at POST /soak/settle garbage is collected and the C library gives back what it keeps for later.

What is then in memory is what something holds. Without it the figures are glibc's: how much of the freed memory it keeps depends on which
piece was freed last, and goes up and down by a tenth.
"""

import ctypes
import gc

import server

NODE_CLASS_MAPPINGS = {}


@server.PromptServer.instance.routes.post("/soak/settle")
async def settle(request):
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)  # a C library without it keeps little
    return server.web.Response()
