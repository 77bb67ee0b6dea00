"""Checks of the prompt graph's links before sampling.

A MODEL without Intrinsic Co-Generation cannot refuse a joint latent itself: none of our code runs in its
sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_execution.graph_utils import is_link

COUPLES = "SpatialWeave_IntrinsicCoGeneration"
MODELS = ("model", "guider")  # inputs of core's samplers that carry a model
Graph = Mapping[str, Mapping[str, Any]]  # node id -> node, in API form


def check_samplers(hidden) -> None:
    """Raise ValueError if a joint latent is linked to a sampler whose model lacks Intrinsic Co-Generation.

    `hidden` is the node's hidden inputs, its id and the graph; there is none in a script. Only direct links
    are checked: behind other nodes a sampler may receive one stream of the latent alone.
    """
    prompt: Graph = getattr(hidden, "prompt", None) or {}
    for key, node in prompt.items():
        inputs = node["inputs"]
        if [hidden.unique_id, 0] not in inputs.values():
            continue
        for name in MODELS:
            link = inputs.get(name)
            if is_link(link) and COUPLES not in kinds_behind(prompt, link[0]):
                title = node.get("_meta", {}).get("title") or node["class_type"]
                raise ValueError(
                    f"Expected the MODEL of Intrinsic Co-Generation at {name} of {title} (node {key}), which "
                    "samples the joint latent, got a model without it. Connect that MODEL, or the image's "
                    "own latent instead of the joint one."
                )


def kinds_behind(prompt: Graph, key: str) -> set[str]:
    """The class types of a node and of all nodes upstream of it."""
    seen, queue = set(), [key]
    while queue:
        key = queue.pop()
        if key in prompt and key not in seen:
            seen.add(key)
            queue += [value[0] for value in prompt[key]["inputs"].values() if is_link(value)]
    return {prompt[key]["class_type"] for key in seen}
