"""Laid into the soak's custom_nodes: at POST /soak/settle garbage is collected, the C library gives back what
it keeps for later, and the answer counts what is in use: Python's objects, and bytes of the C library; and
what core's loader has read of safetensors files so far.

What is then in memory is what something holds. Without it the figures are glibc's: how much of the freed
memory it keeps depends on which piece was freed last, and goes up and down by a tenth.
"""

import ctypes
import gc
import sys

import comfy.utils
import server

NODE_CLASS_MAPPINGS = {}
tensors = {"core": 0, "pack": 0}  # read by core's loader, for whom
load_file = comfy.utils.load_torch_file


def load_and_count(path, *args, **kwargs):
    loaded = load_file(path, *args, **kwargs)
    if str(path).endswith(".safetensors"):
        caller = sys._getframe(1).f_code.co_filename
        state = loaded[0] if isinstance(loaded, tuple) else loaded
        tensors["pack" if "/custom_nodes/spatialweave/" in caller else "core"] += len(state)
    return loaded


comfy.utils.load_torch_file = load_and_count


FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()


class Usage(ctypes.Structure):
    """glibc's mallinfo2, summed over its arenas: uordblks are bytes in use, hblkhd bytes of blocks mapped
    each on its own.
    """

    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS)


def count_allocated(library):
    """Bytes that the C library has given out; 0 where it does not tell."""
    if not hasattr(library, "mallinfo2"):
        return 0
    library.mallinfo2.restype = Usage
    usage = library.mallinfo2()
    return usage.uordblks + usage.hblkhd


@server.PromptServer.instance.routes.post("/soak/settle")
async def settle(request):
    gc.collect()
    library = ctypes.CDLL(None)
    getattr(library, "malloc_trim", lambda pad: None)(0)  # a C library without it keeps little
    used = {"objects": sys.getallocatedblocks(), "allocated": count_allocated(library)}
    return server.web.json_response(used | {f"tensors of {name}": number for name, number in tensors.items()})
