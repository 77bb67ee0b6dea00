"""The prompt graph, which a node with `hidden` inputs sees: what is linked to its output, and to that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comfy_execution.graph_utils import is_link

MODELS = ("model", "guider")  # inputs of core's samplers that carry a model
Graph = Mapping[str, Mapping[str, Any]]  # node id -> node, in API form


def find_samplers(hidden) -> Iterator[tuple[str, str, set[str]]]:
    """Samplers that the first output of this node is linked to: the input that carries a model, the sampler's
    name, and the class types of the nodes behind that input.

    `hidden` is the node's hidden inputs, its id and the graph; there is none in a script. Only direct links
    count: behind other nodes a sampler may receive one stream of a joint latent alone.
    """
    prompt: Graph = getattr(hidden, "prompt", None) or {}
    for key, node in prompt.items():
        inputs = node["inputs"]
        if [hidden.unique_id, 0] not in inputs.values():
            continue
        for name in MODELS:
            link = inputs.get(name)
            if is_link(link):
                title = node.get("_meta", {}).get("title") or node["class_type"]
                yield name, f"{title} (node {key})", kinds_behind(prompt, link[0])


def kinds_behind(prompt: Graph, key: str) -> set[str]:
    """The class types of a node and of all nodes upstream of it."""
    seen, queue = set(), [key]
    while queue:
        key = queue.pop()
        if key in prompt and key not in seen:
            seen.add(key)
            queue += [value[0] for value in prompt[key]["inputs"].values() if is_link(value)]
    return {prompt[key]["class_type"] for key in seen}
