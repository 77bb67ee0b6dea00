"""The builder of each `system` of a recipe: from a Recipe to the Task that the training loop runs."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.training.loop import Builder
from ..intrinsic_ldm.training import lora as training_lora
from ..intrinsic_ldm.training import vae as training_vae
from ..joyai_edit.training import lora as joyai_lora
from ..modality_forcing.training import task as training_task
from ..spatial_diff.training.connector import build_stage
from ..world.judges import predictor_task, scorer_task
from .caption_lm import build_caption_lm
from .intrinsic_ldm import build_tiny_base, build_tiny_image_vae
from .joint_fusion import build_spatial_fusion
from .modality_forcing import build_tiny_modality_forcing
from .spatial_diff import build_tiny_editor
from .spatial_fusion import build_depth_adapter
from .spatial_transformer import build_spatial_transformer
from .tiny_codec import build_codec
from .vggt import build_vggt

BUILDERS: Mapping[str, Builder] = {
    "modality_forcing": training_task.build,
    "tiny_modality_forcing": build_tiny_modality_forcing,
    "tiny_codec": build_codec,
    "tiny_image_vae": build_tiny_image_vae,
    "tiny_base": build_tiny_base,
    "intrinsic_vae": training_vae.build,
    "intrinsic_lora": training_lora.build,
    "joyai_lora": joyai_lora.build,
    "predictor": predictor_task.build,
    "scorer": scorer_task.build,
    "vggt": build_vggt,
    "tiny_editor": build_tiny_editor,
    "spatial_diff": build_stage,
    "depth_adapter": build_depth_adapter,
    "caption_lm": build_caption_lm,
    "spatial_transformer": build_spatial_transformer,
    "spatial_fusion": build_spatial_fusion,
}
