"""Checks of the prompt graph: whether core's text encoder node gets what the model needs.

TextEncodeJoyImageEdit leaves out the reference image without an error where no VAE is linked, and encodes
with whatever text encoder it is given. Our nodes do not see its inputs, so they read the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sd
import folder_paths
import torch
from comfy_execution.graph_utils import is_link

from ....models.core.weights.files import read_header

ENCODER = "TextEncodeJoyImageEdit"
LOADER = "CLIPLoader"
KIND = "joyimage"
Graph = Mapping[str, Mapping[str, Any]]  # node id -> node, in API form


def check_encoders_after(hidden, *, image_too: bool = False) -> None:
    """Raise ValueError if an encoder that this node's prompt or image reaches lacks what the model needs.

    `image_too`: an encoder that gets this node's prompt must get its image as well, which has the red box.
    """
    graph: Graph = getattr(hidden, "prompt", None) or {}
    for key, node in graph.items():
        if node["class_type"] != ENCODER:
            continue
        by_prompt = _is_behind(graph, hidden.unique_id, [node["inputs"].get("prompt")])
        by_image = _is_behind(graph, hidden.unique_id, _images(node))
        if by_prompt or by_image:
            check_encoder(graph, key)
        if image_too and by_prompt and not by_image:
            raise ValueError(
                f"Expected this node's image at {_title(graph, key)}, which gets its prompt, got other "
                "images, without the red box. Wire this node's output picture into image0."
            )


def check_encoders_before(hidden) -> None:
    """The same for all encoders upstream of this node: they run again when a link of theirs is taken off."""
    graph: Graph = getattr(hidden, "prompt", None) or {}
    if (own := getattr(hidden, "unique_id", None)) in graph:
        for key in sorted(_upstream(graph, own)):
            if graph[key]["class_type"] == ENCODER:
                check_encoder(graph, key)


def check_encoder(graph: Graph, key: str) -> None:
    """Raise ValueError if an encoder node has no image, no VAE, or another model's text encoder."""
    inputs, title = graph[key]["inputs"], _title(graph, key)
    if not any(is_link(link) for link in _images(graph[key])):
        raise ValueError(
            f"Expected an image at {title}, got none: the model would generate a new image, not an edit. "
            "Wire the image into image0."
        )
    if not is_link(inputs.get("vae")):
        raise ValueError(
            f"Expected a VAE at {title}, got none: ComfyUI then leaves the reference image out without an "
            "error, and the model edits nothing. Wire the VAE (wan_2.1_vae.safetensors) into vae."
        )
    if not is_link(inputs.get("clip")):
        return  # core itself refuses that
    behind = {inputs["clip"][0], *_upstream(graph, inputs["clip"][0])}
    for loader in sorted(name for name in behind if graph[name]["class_type"] == LOADER):
        _check_loader(graph, loader)


def _check_loader(graph: Graph, key: str) -> None:
    inputs, title = graph[key]["inputs"], _title(graph, key)
    kind, name = inputs.get("type"), inputs.get("clip_name")
    if isinstance(kind, str) and kind != KIND:
        raise ValueError(
            f"Expected a text encoder of type {KIND} in {title}, got type {kind}. Choose {KIND}: the "
            "prompt is encoded with that model's template."
        )
    path = folder_paths.get_full_path("text_encoders", name) if isinstance(name, str) else None
    if path is None or not path.endswith(".safetensors"):
        return
    found = _name_encoder(path)
    if found != comfy.sd.TEModel.QWEN3VL_8B:
        got = "a file that ComfyUI does not know" if found is None else f"a {found.name} encoder"
        raise ValueError(
            f"Expected JoyImage's Qwen3-VL-8B in {title}, got {got} in {name}. Choose "
            "qwen3vl_8b_joyimage_edit_int8_convrot.safetensors, of Comfy-Org/JoyAI-Image-Edit."
        )


def _name_encoder(path: str) -> Any:
    """Core's TEModel of a file, by the names and shapes of its tensors."""
    nothing = torch.zeros(())
    state = {name: nothing.expand(shape) for name, shape in read_header(path).shapes.items()}
    return comfy.sd.detect_te_model(state)


def _images(node: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in node["inputs"].items() if name.startswith("images.")]


def _is_behind(graph: Graph, node_id: str, links: list[Any]) -> bool:
    """Whether a node is at, or upstream of, one of these links."""
    sources = [link[0] for link in links if is_link(link)]
    return any(source == node_id or node_id in _upstream(graph, source) for source in sources)


def _upstream(graph: Graph, key: str) -> set[str]:
    """The ids of all nodes upstream of a node."""
    seen: set[str] = set()
    waiting = [key]
    while waiting:
        inputs = graph.get(waiting.pop(), {}).get("inputs", {})
        new = {value[0] for value in inputs.values() if is_link(value)} & set(graph) - seen
        seen |= new
        waiting += new
    return seen


def _title(graph: Graph, key: str) -> str:
    node = graph[key]
    return f"{node.get('_meta', {}).get('title') or node['class_type']} (node {key})"
