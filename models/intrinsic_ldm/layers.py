"""The self-attention layers of a base model, and which number l the weight schedules know each by.

The paper does not say what its l counts. Two readings can be chosen, and w acts at sampling only, so both serve the same LoRA:
"stages": a UNet's resolutions in order, 1 to 2n + 1 for n of them (SD2.1: down 1-4, middle 5, up 6-9), a transformer's blocks from 0;
"blocks": the transformer blocks in the order in which they run, from 0 (SD2.1: 0 to 15).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

Reading = Literal["stages", "blocks"]
READINGS: tuple[Reading, ...] = ("stages", "blocks")


@dataclass(frozen=True)
class Layer:
    """One self-attention: `name` is diffusers' path of it, `place` where the host finds it, the numbers as above."""

    name: str
    place: tuple
    stage: int
    block: int

    def number(self, reading: Reading) -> int:
        return self.stage if reading == "stages" else self.block


def layer_numbers(layers: Sequence[Layer], reading: Reading) -> range:
    """The numbers there are. A UNet's outermost and deepest stages may have no self-attention, and are as many before as after."""
    numbers = [layer.number(reading) for layer in layers]
    if reading == "stages" and any(layer.stage != layer.block for layer in layers):
        return range(1, min(numbers) + max(numbers))
    return range(min(numbers), max(numbers) + 1)


def middle_layers(layers: Sequence[Layer], reading: Reading) -> frozenset[int]:
    """L where the user names none: the paper's 3 to 7 of nine stages, else about the middle 40 per cent of the numbers there are.

    The paper's appendix on other bases is not public; it says only that the outer blocks get low weight.
    """
    numbers = layer_numbers(layers, reading)
    if numbers == range(1, 10):
        return frozenset(range(3, 8))
    outer = round(0.3 * len(numbers))
    return frozenset(numbers[outer : len(numbers) - outer])


def check_layers(chosen: Collection[int], layers: Sequence[Layer], reading: Reading) -> None:
    """Refuse a number that no layer can have, and a choice without any self-attention: they would do nothing, silently."""
    numbers, present = layer_numbers(layers, reading), sorted({layer.number(reading) for layer in layers})
    unknown = sorted(set(chosen) - set(numbers))
    if unknown or not set(chosen) & set(present):
        named = f"layer {unknown[0]}" if unknown else "no layer with self-attention"
        raise ValueError(
            f"The schedule names {named}, but read as {reading} this model counts {numbers[0]} to "
            f"{numbers[-1]}, with self-attention in {', '.join(map(str, present))}: choose among these."
        )
