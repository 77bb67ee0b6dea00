"""A real ComfyUI in a process of its own, with the pack loaded the way ComfyUI loads it,
that calls functions by name.

    python worker.py COMFYUI PACK

Then one JSON line per call on stdin, one JSON line per answer on stdout. A call is
{"file": "inside_sampling.py", "function": "name", "kwargs": {...}}; an answer {"value": ...} or
{"error": text}. The files called find the pack's modules through `ours`. The first line it prints, unasked,
has the seconds that loading the pack took, and in processor seconds, which other work on the machine does not
lengthen, what the pack and ComfyUI itself took:

    python worker.py ~/comfy/ComfyUI . < /dev/null
"""

import asyncio
import atexit
import compileall
import gc
import importlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent


def start(comfyui, pack):
    """Import ComfyUI, on the CPU, and the pack through ComfyUI's own loader."""
    os.chdir(comfyui)
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = True
    import torch

    torch.set_num_threads(1)
    began = time.process_time()
    import nodes

    comfyui_processor = time.process_time() - began

    # ComfyUI loads its own extra nodes first: what those import is not the pack's time
    asyncio.run(
        nodes.load_custom_node(
            os.path.join(comfyui, "comfy_extras", "nodes_custom_sampler.py"), module_parent="comfy_extras"
        )
    )
    compile_all(pack)
    gc.disable()  # a collection of what ComfyUI made takes .2 s and falls upon whoever happens to allocate
    began, processor = time.perf_counter(), time.process_time()
    loaded = asyncio.run(nodes.load_custom_node(str(pack), module_parent="custom_nodes"))
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    gc.enable()
    gc.freeze()  # it stays
    sys.pycache_prefix = None  # what other packages import late has its bytecode beside it
    return {
        "loaded": loaded,
        "seconds": round(seconds, 3),
        "processor_seconds": {"pack": round(processor, 3), "comfyui": round(comfyui_processor, 3)},
        "nodes": sorted(name for name in nodes.NODE_CLASS_MAPPINGS if "SpatialWeave_" in name),
    }


def compile_all(pack):
    """Bytecode of the pack, as ComfyUI finds it at every start but the first, in a folder of its own: the
    pack's may be another Python's.
    """
    sys.pycache_prefix = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, sys.pycache_prefix, ignore_errors=True)
    for part in ("nodes", "models", "kernels"):
        compileall.compile_dir(os.path.join(pack, part), quiet=2)
    compileall.compile_file(os.path.join(pack, "__init__.py"), quiet=2)


def ours(dotted):
    """A module of the pack, under the name ComfyUI gave it."""
    return importlib.import_module(f"{sys.argv[2].replace('.', '_x_')}.{dotted}")


def load_file(name):
    key = f"spatialweave_tests_{Path(name).stem}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, HERE / name)
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        module.ours = ours
        spec.loader.exec_module(module)
    return sys.modules[key]


def freeze():
    """What was imported stays: no garbage collection needs to look through it again."""
    gc.collect()
    gc.freeze()
    return len(sys.modules)


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints goes to the log
    sys.stdin.reconfigure(encoding="utf-8")
    comfyui, sys.argv[2] = (os.path.abspath(place) for place in sys.argv[1:3])
    reply, frozen = {"value": start(comfyui, sys.argv[2])}, len(sys.modules)
    while True:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
        line = sys.stdin.readline()
        if not line:
            return
        call = json.loads(line)
        try:
            import torch

            with torch.inference_mode():  # as ComfyUI's executor runs nodes
                reply = {"value": getattr(load_file(call["file"]), call["function"])(**call["kwargs"])}
        except Exception:  # noqa: BLE001 - the caller gets it, whatever it is
            reply = {"error": traceback.format_exc()}
        if len(sys.modules) > frozen + 100:  # diffusers and core's further nodes come late
            frozen = freeze()


if __name__ == "__main__":
    main()
