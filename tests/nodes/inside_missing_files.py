"""Called by worker.py inside ComfyUI: choices of a loader whose files are no longer there."""

import asyncio
import os

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py


def said_of(graphs):
    """What ComfyUI's own check says below each of the graphs' nodes, in API form."""
    import execution

    place = os.path.join("comfy_extras", "nodes_preview_any.py")  # an output for any socket
    asyncio.run(core.load_custom_node(place, module_parent="comfy_extras"))
    out = {}
    for name, graph in graphs.items():
        _, _, _, node_errors = asyncio.run(execution.validate_prompt(name, graph, None))
        out[name] = [error["details"] for node in node_errors.values() for error in node["errors"]]
    return out
