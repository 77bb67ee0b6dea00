"""The self-attention layers of a base model, and the layer number l that the weight schedules take.

The paper does not define how its l is counted. Two numberings can be selected; w acts at sampling only, so
both work with the same LoRA:
"stages": the resolution levels of a UNet in running order, 1 to 2n + 1 for n levels (SD2.1: down 1-4,
middle 5, up 6-9); the blocks of a transformer from 0;
"blocks": the transformer blocks in running order, from 0 (SD2.1: 0 to 15).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

Reading = Literal["stages", "blocks"]
READINGS: tuple[Reading, ...] = ("stages", "blocks")


@dataclass(frozen=True)
class Layer:
    """One self-attention layer.

    `name` is its module path in diffusers, `key` identifies it in the host's network; `stage` and `block` are
    its numbers in the two numberings.
    """

    name: str
    key: tuple
    stage: int
    block: int

    def number(self, reading: Reading) -> int:
        return self.stage if reading == "stages" else self.block


def layer_numbers(layers: Sequence[Layer], reading: Reading) -> range:
    """All layer numbers of a model.

    A UNet's outermost and deepest stages may have no self-attention; the up path is taken to have as many
    stages as the down path.
    """
    numbers = [layer.number(reading) for layer in layers]
    if reading == "stages" and any(layer.stage != layer.block for layer in layers):
        return range(1, min(numbers) + max(numbers))
    return range(min(numbers), max(numbers) + 1)


def middle_layers(layers: Sequence[Layer], reading: Reading) -> frozenset[int]:
    """The default L of `Drop`: the paper's 3 to 7 of nine stages, else the middle 40 percent, rounded.

    The paper's appendix on other bases is not public; it says only that the outer blocks get low weight.
    """
    numbers = layer_numbers(layers, reading)
    if numbers == range(1, 10):
        return frozenset(range(3, 8))
    outer = round(0.3 * len(numbers))
    return frozenset(numbers[outer : len(numbers) - outer])


def check_layers(chosen: Collection[int], layers: Sequence[Layer], reading: Reading) -> None:
    """ValueError for a layer number outside the model's range, or if no chosen layer has self-attention."""
    numbers, present = layer_numbers(layers, reading), sorted({layer.number(reading) for layer in layers})
    unknown = sorted(set(chosen) - set(numbers))
    if unknown or not set(chosen) & set(present):
        named = f"layer {unknown[0]}" if unknown else "no layer with self-attention"
        raise ValueError(
            f"Expected layers from {numbers[0]} to {numbers[-1]} in the schedule, with self-attention in "
            f"{', '.join(map(str, present))} ({reading} of this model), got {named}. Choose among these."
        )
