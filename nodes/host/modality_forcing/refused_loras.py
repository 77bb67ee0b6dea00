"""LoRAs made for a network of another size, refused by name.

Core logs one line for each layer that such a file does not fit, and samples on without it.
"""

from __future__ import annotations

from collections.abc import Sequence

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter

from ....models.modality_forcing.config import ModalityForcingConfig
from ....models.modality_forcing.weights import network_shapes

HOSTED = "diffusion_model."
BASES = {3072: "FLUX.2 klein 4B", 4096: "FLUX.2 klein 9B", 6144: "FLUX.2 dev"}  # by their width
Shape = tuple[int, ...]


def check_loras(patcher: ModelPatcher, network: ModalityForcingConfig) -> None:
    """Look at every change of weights that core is to make, of LoRA nodes and of LoRAs hooked to a prompt."""
    places = [patcher.patches, *patcher.hook_patches.values()]
    if not any(places):
        return
    shapes = network_shapes(network)
    for changes in places:
        for key, patches in changes.items():
            name = key.removeprefix(HOSTED)
            for _, patch, _, offset, *_ in patches:
                if name in shapes:
                    check_fits(
                        name, changed_shape(patch), part_shape(shapes[name], offset), network.hidden_size
                    )


def check_fits(name: str, given: Shape | None, wanted: Shape, width: int) -> None:
    """Refuse a change of another shape than its layer."""
    if given is None or given == wanted:
        return
    other = next((side for side, own in zip(given, wanted, strict=False) if own == width != side), None)
    made = "another network" if other is None else f"a network of width {name_width(other)}"
    raise ValueError(
        f"A LoRA for {made} arrived, but this one has the width {name_width(width)}: it changes {name} as "
        f"{given}, which is {wanted} here; take that LoRA out, or use one made for this base."
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
    """The shape of what a change adds to its layer; None for kinds that do not say it."""
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
