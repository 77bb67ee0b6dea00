"""LoRAs for a network of another kind or size, refused by name.

Core only logs a line for each layer that such a file does not fit, and samples without it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter

from ....models.modality_forcing.config import ModalityForcingConfig
from ....models.modality_forcing.weights import network_shapes

HOSTED = "diffusion_model."
BASES = {3072: "FLUX.2 klein 4B", 4096: "FLUX.2 klein 9B", 6144: "FLUX.2 dev"}  # by their width
Shape = tuple[int, ...]


def refuse_other_networks(patcher: ModelPatcher) -> None:
    """Let a patcher, and every clone of it, refuse changes of weights among which none is for its layers.

    Core's LoRA loaders hand over what they found in a file; of another network's they find nothing.
    """
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, "spatialweave", _check_clone)
    _check_clone(None, patcher)


def _check_clone(_, clone: ModelPatcher) -> None:
    # by a weak reference: core counts on a patcher to go with its last user
    own, kind = weakref.ref(clone), type(clone)
    clone.add_patches = partial(_add_patches, own, kind.add_patches)
    clone.add_hook_patches = partial(_add_hook_patches, own, kind.add_hook_patches)


def _add_patches(own, add, patches: Mapping, *args, **kwargs):
    check_layers_found(patches)
    return add(own(), patches, *args, **kwargs)


def _add_hook_patches(own, add, hook, patches: Mapping, *args, **kwargs):
    check_layers_found(patches)
    return add(own(), hook, patches, *args, **kwargs)


def check_layers_found(patches: Mapping) -> None:
    """Refuse a file in which core found no layer of this network."""
    if not patches:
        raise ValueError(
            "Expected a LoRA for this joint model or its FLUX.2 base, got one for another network: none of "
            "its layers exists here (those for SD 1.5, SDXL and others have other layers). Remove it, or use "
            "one made for this base."
        )


def check_loras(patcher: ModelPatcher, network: ModalityForcingConfig) -> None:
    """Check every change of weights that core will make, of LoRA nodes and of LoRAs hooked to a prompt."""
    all_changes = [patcher.patches, *patcher.hook_patches.values()]
    if not any(all_changes):
        return
    shapes = network_shapes(network)
    for changes in all_changes:
        for key, patches in changes.items():
            name = key.removeprefix(HOSTED)
            for _, patch, _, offset, *_ in patches:
                if name in shapes:
                    check_fits(
                        name, changed_shape(patch), part_shape(shapes[name], offset), network.hidden_size
                    )


def check_fits(name: str, lora_shape: Shape | None, layer_shape: Shape, width: int) -> None:
    """Refuse a change of another shape than its layer."""
    if lora_shape is None or lora_shape == layer_shape:
        return
    other = next(
        (side for side, own in zip(lora_shape, layer_shape, strict=False) if own == width != side), None
    )
    made_for = "another network" if other is None else f"a network of width {name_width(other)}"
    raise ValueError(
        f"Expected a LoRA for a network of width {name_width(width)}, got one for {made_for}: it changes "
        f"{name} as {lora_shape}, which is {layer_shape} here. Remove that LoRA, or use one made for this "
        "base."
    )


def name_width(width: int) -> str:
    return f"{width} ({BASES[width]})" if width in BASES else str(width)


def part_shape(shape: Shape, offset: Sequence[int] | None) -> Shape:
    """The shape of the slice that a change is for, (axis, start, length); None is the whole layer."""
    if offset is None:
        return shape
    axis, _, count = offset
    return (*shape[:axis], count, *shape[axis + 1 :])


def changed_shape(patch) -> Shape | None:
    """The shape of what a change adds to its layer; None for kinds that do not state it."""
    if isinstance(patch, LoRAAdapter):
        up, down = patch.weights[:2]
        return up.shape[0], down.flatten(1).shape[1]
    if isinstance(patch, LoHaAdapter):
        left, right = patch.weights[:2]
        return left.shape[0], right.shape[1]
    if isinstance(patch, LoKrAdapter):
        one, other, _, one_left, one_right, other_left, other_right, *_ = patch.weights
        first, second = product_shape(one, one_left, one_right), product_shape(other, other_left, other_right)
        return first[0] * second[0], first[1] * second[1]
    if isinstance(patch, tuple) and len(patch) > 1 and patch[0] in ("diff", "set"):
        return tuple(patch[1][0].shape)
    return None


def product_shape(whole, left, right) -> Shape:
    """The shape of a matrix that is stored whole, or as the product of two."""
    return (left.shape[0], right.shape[1]) if whole is None else tuple(whole.shape[:2])
