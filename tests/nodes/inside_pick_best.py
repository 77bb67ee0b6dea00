"""Called by worker.py inside ComfyUI: the best of several candidates."""

import asyncio
import sys

import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
# holds the models; its `start` was called before
sampling = sys.modules["spatialweave_tests_inside_sampling"]
SMALLER, LARGER = "smaller is better", "larger is better"


def view_of(depth, image=None):
    return ours("models.core.geometry.view").View.from_depth(depth, units="relative", image=image)


def four():
    """Candidates of one true depth: of relative errors .1, .02 (at another scale), .2, and all holes."""
    random = torch.Generator().manual_seed(2)
    true = 1 + torch.rand(4, 12, 16, generator=random)
    errors = torch.tensor([0.1, 0.02, 0.2, 0.0])[:, None, None]
    signs = torch.where(torch.rand(4, 12, 16, generator=random) > 0.5, 1.0, -1.0)
    depth = true * (1 + errors * signs) * torch.tensor([1.0, 7.0, 1.0, 1.0])[:, None, None]
    depth[3] = 0
    return depth, true


def pick(**inputs):
    """The node's outputs, its inputs handed over as ComfyUI hands those of a node of lists."""
    lists = {name: value if name == "scores" else [value] for name, value in inputs.items()}
    return core.NODE_CLASS_MAPPINGS["SpatialWeave_PickBest"].EXECUTE_NORMALIZED(**lists)


def by_agreement():
    depth, true = four()
    image = torch.rand(4, 12, 16, 3)
    latent = sampling.rig().latent(batch=4)
    streams = [torch.rand_like(part) for part in latent["samples"].unbind()]
    latent["samples"] = sampling.NestedTensor(streams)
    out = pick(view=view_of(depth, image), reference=view_of(true), order=LARGER, latent=latent)
    picked, view, row, index, text = out.result
    return {
        "index": index, "text": text.splitlines(), "under": out.ui.as_dict()["text"][0] == text,
        "image": torch.equal(picked, image[1:2]), "view": torch.equal(view.depth, depth[1:2]),
        "latent": all(torch.equal(a, b[1:2]) for a, b in zip(row["samples"].unbind(), streams)),
        "kind": type(row["samples"]).__name__,
    }


def by_scores(scores, order, plain):
    """Image and a plain latent with a mask, by scores alone."""
    images, latent = torch.rand(3, 8, 8, 3), {"samples": torch.rand(3, 4, 2, 2), "batch_index": [5, 6, 7]}
    latent |= {"noise_mask": torch.rand(3 if plain else 1, 2, 2)}
    picked, view, row, index, _ = pick(scores=scores, order=order, image=images, latent=latent).result
    mask = latent["noise_mask"]
    return {
        "index": index, "view": view is None, "image": torch.equal(picked, images[index : index + 1]),
        "latent": torch.equal(row["samples"], latent["samples"][index : index + 1]),
        "mask": torch.equal(row["noise_mask"], mask[index : index + 1] if plain else mask),
        "batch_index": row["batch_index"],
    }


def refused(case):
    depth, true = four()
    view, other = view_of(depth), view_of(true)
    inputs = {
        "neither": {"view": view},
        "both": {"view": view, "reference": other, "scores": [1.0] * 4},
        "a reference alone": {"reference": other},
        "another count": {"view": view, "reference": view_of(true[1:3])},
        "too few scores": {"scores": [1.0, 2.0], "image": torch.rand(3, 8, 8, 3)},
        "nothing to pick from": {"scores": [1.0, 2.0]},
        "no number": {"scores": [float("nan")] * 4, "view": view},
        "another size": {"view": view, "reference": view_of(torch.rand(4, 6, 8) + 1)},
    }[case]
    try:
        pick(order=LARGER, **inputs)
    except ValueError as error:
        return str(error)
    return None


def in_a_graph():
    """What ComfyUI's own check has against the node with its required widget alone, or nothing."""
    import execution

    graph = {"1": {"class_type": "SpatialWeave_PickBest", "inputs": {"order": SMALLER}}}
    return asyncio.run(execution.validate_prompt("pick", graph, None))[0]
