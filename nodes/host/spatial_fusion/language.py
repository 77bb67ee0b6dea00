"""The tiny system's language model as a core CLIP: core's own decoder class over the tiny words."""

from __future__ import annotations

import logging
import numbers

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.llama
import folder_paths
import torch

from ....models.core.weights.files import WeightsError, check_finite
from ....models.spatial_fusion.config import LanguageSizes
from ....models.spatial_fusion.language import read_language, tokenize_words
from ....models.tiny.text import PAD, TOKENS, explain_prompt
from ..shared.file_kinds import describe_file
from ..shared.notes import running_node, show

FOLDER = "text_encoders"
NAME = "spatialweave_language"  # of its tokens, and of the module in the CLIP
HEAD_DIM = comfy.text_encoders.llama.Qwen25_3BConfig.head_dim
TRAIN = "SpatialFusion's recipe caption_lm_tiny writes it (in an installed clone of the repository)"

logger = logging.getLogger("spatialweave.text")


class LanguageTokenizer:
    """Prompts to (token, weight) pairs. What the model cannot read is logged, and shown under the node."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        """Core's arguments; the tiny words have no embeddings of files."""

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs
    ) -> dict[str, list[list[tuple[numbers.Integral, float]]]]:
        notice = explain_prompt(text)
        if notice:
            logger.warning(notice)
        show(notice or "", running_node())
        pairs = []
        for part, weight in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0):
            ids = tokenize_words([comfy.sd1_clip.unescape_important(part)])[0]
            pairs += [(token, weight) for token in ids]
        pairs = pairs[:TOKENS] or [(PAD, 1.0)]
        if return_word_ids:
            pairs = [(*pair, i + 1) for i, pair in enumerate(pairs)]
        return {NAME: [pairs]}

    def state_dict(self) -> dict:
        return {}


class LanguageEncoder(comfy.sd1_clip.SDClipModel):
    """Core's wrapper of a decoder, with the sizes of `model_options`."""

    def __init__(self, device="cpu", layer="last", layer_idx=None, dtype=None, model_options=None):
        super().__init__(
            device=device, layer=layer, layer_idx=layer_idx, dtype=dtype, special_tokens={"pad": PAD},
            textmodel_json_config={}, layer_norm_hidden_state=False, enable_attention_masks=True,
            return_attention_masks=True, model_class=comfy.text_encoders.llama.Qwen25_3B,
            model_options=model_options,
        )  # fmt: skip


class LanguageCondModel(comfy.sd1_clip.SD1ClipModel):
    """Core's text encoder interface."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=dtype, name=NAME, clip_model=LanguageEncoder, model_options=model_options
        )


def list_language_files() -> list[str]:
    """What the loader offers: the files of core's text_encoders folders."""
    return folder_paths.get_filename_list(FOLDER)


def find_language_fault(name: str) -> str | None:
    """What is wrong with a choice of the loader, and the remedy, in one sentence; else None."""
    if name in list_language_files():
        return None
    return (
        f"Expected {name or 'a file'} in ComfyUI's models/{FOLDER}, got no such file. Put a tiny language "
        f"model there: {TRAIN}."
    )


def load_language_clip(name: str) -> tuple[comfy.sd.CLIP, str]:
    """(CLIP, what it is, in a line) of a file; another kind of file is refused by what it is."""
    fault = find_language_fault(name)
    if fault:
        raise WeightsError(fault)
    path = folder_paths.get_full_path_or_raise(FOLDER, name)
    sizes, state = read_language(path, describe_file)
    if sizes.head_dim != HEAD_DIM:
        raise WeightsError(
            f"Expected attention heads of {HEAD_DIM} channels, as ComfyUI's language models have, got "
            f"{sizes.head_dim} in {path}. Train it with the preset's heads."
        )
    check_finite(state, path)
    values = sum(tensor.numel() for tensor in state.values())
    return language_clip(sizes, state), (
        f"A tiny language model: {sizes.num_hidden_layers} layers of width {sizes.hidden_size}, "
        f"{sizes.vocab_size - 2} words, {values:,} parameters."
    )


def language_clip(sizes: LanguageSizes, state: dict[str, torch.Tensor]) -> comfy.sd.CLIP:
    """A core CLIP around the weights, in float32."""
    config = sizes.to_json()
    del config["head_dim"]  # a constant of core's class
    options = {"dtype": torch.float32, f"{NAME}_model_config": config}
    target = comfy.supported_models_base.ClipTarget(tokenizer=LanguageTokenizer, clip=LanguageCondModel)
    values = sum(tensor.numel() for tensor in state.values())
    named = {f"model.{key}": tensor.float() for key, tensor in state.items()}
    return comfy.sd.CLIP(target, parameters=values, state_dict=[named], model_options=options)
