"""Checks of the prompt graph's links before sampling.

Another model cannot refuse a joint latent itself: none of our code runs in its sampling.
"""

from __future__ import annotations

from ..shared.prompt_graph import find_samplers

LOADER = "SpatialWeave_LoadModalityForcing"
OTHER_LOADERS = {
    "CheckpointLoader",
    "CheckpointLoaderSimple",
    "DiffusersLoader",
    "ImageOnlyCheckpointLoader",
    "SpatialWeave_LoadTinyDiffusion",
    "UNETLoader",
    "unCLIPCheckpointLoader",
}  # of which none gives a joint model


def check_joint_samplers(hidden) -> None:
    """Raise ValueError if a joint latent is linked to a sampler with the model of another loader."""
    for name, title, kinds in find_samplers(hidden):
        others = sorted(kinds & OTHER_LOADERS)
        if others and LOADER not in kinds:
            raise ValueError(
                f"Expected a joint model at {name} of {title}, which samples the joint latent, got the model "
                f"of {others[0].removeprefix('SpatialWeave_')}. Connect that of Load Modality Forcing, or an "
                "Empty Latent Image instead."
            )
