"""What a graph's wires say before anything is sampled.

A plain model cannot refuse a joint latent itself, as none of our code runs in its sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_execution.graph_utils import is_link

COUPLES = "SpatialWeave_IntrinsicCoGeneration"
MODELS = ("model", "guider")  # inputs of core's samplers that a model comes through
Graph = Mapping[str, Mapping[str, Any]]  # in API form


def check_samplers(hidden) -> None:
    """Raises ValueError where the joint latent of a node goes into a sampler whose model met no Intrinsic Co-Generation.

    `hidden` is the node's own, with its id and the graph; a script has none. Samplers behind other nodes are not looked for: they may get
    but a part of the latent.
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
                    f"The joint latent goes into {title} (node {key}), whose {name} is plain: wire the MODEL of Intrinsic Co-Generation "
                    "into it, or the image's own latent instead of the joint one."
                )


def kinds_behind(prompt: Graph, key: str) -> set[str]:
    """The classes of a node and of all that it is made from."""
    seen, waiting = set(), [key]
    while waiting:
        key = waiting.pop()
        if key in prompt and key not in seen:
            seen.add(key)
            waiting += [value[0] for value in prompt[key]["inputs"].values() if is_link(value)]
    return {prompt[key]["class_type"] for key in seen}
