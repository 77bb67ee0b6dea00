"""Called by worker.py inside ComfyUI: every number that can be typed into our nodes."""

import nodes as core


def numbers():
    """FLOAT widgets by "Node.input", those of a dynamic combo's choices among them,
    as the frontend is told of them.
    """
    out = {}
    for name, node in core.NODE_CLASS_MAPPINGS.items():
        if name.startswith("SpatialWeave_"):
            for place, put in walk(node.GET_SCHEMA().inputs, name.removeprefix("SpatialWeave_")):
                if put.io_type == "FLOAT" and not getattr(put, "force_input", None):  # a socket alone
                    out[place] = put.as_dict()
    return out


def walk(inputs, place):
    for put in inputs:
        yield f"{place}.{put.id}", put
        for option in getattr(put, "options", None) or ():
            yield from walk(
                getattr(option, "inputs", None) or (),
                f"{place}.{put.id}.{option.key}" if hasattr(option, "key") else place,
            )
