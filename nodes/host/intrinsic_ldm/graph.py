"""Checks of the prompt graph's links before sampling.

A MODEL without Intrinsic Co-Generation cannot refuse a joint latent itself: none of our code runs in its
sampling.
"""

from __future__ import annotations

from ..shared.prompt_graph import find_samplers

COUPLES = "SpatialWeave_IntrinsicCoGeneration"


def check_samplers(hidden) -> None:
    """Raise ValueError if a joint latent is linked to a sampler whose model lacks Intrinsic Co-Generation."""
    for name, title, kinds in find_samplers(hidden):
        if COUPLES not in kinds:
            raise ValueError(
                f"Expected the MODEL of Intrinsic Co-Generation at {name} of {title}, which "
                "samples the joint latent, got a model without it. Connect that MODEL, or the image's "
                "own latent instead of the joint one."
            )
