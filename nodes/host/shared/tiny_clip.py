"""The tiny text encoder as a core CLIP, so that CLIPTextEncode and the conditioning nodes take it."""

from __future__ import annotations

import logging

import comfy.ops
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor

from ....models.tiny.text import TinyTextEncoder, explain_prompt, read_layout, tokenize
from .notes import running_node, show

logger = logging.getLogger("spatialweave.text")


class TinyTokenizer:
    """Prompts to token ids. What the model cannot read is logged, and shown under the node that encodes."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        pass

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs
    ) -> dict[str, list[Tensor]]:
        notice = explain_prompt(text)
        if notice:
            logger.warning(notice)
        show(notice or "", running_node())
        return {"spatialweave_tiny": list(tokenize([text]))}

    def state_dict(self) -> dict:
        return {}


class TinyCondModel(TinyTextEncoder):
    """Core's text encoder interface. Without layers, the options of CLIP Set Last Layer are refused."""

    def __init__(self, *, dtype=None, device=None, model_options=None):
        super().__init__(
            *model_options["spatialweave_tiny"], operations=comfy.ops.manual_cast, device=device, dtype=dtype
        )
        self.dtypes = {dtype}
        self.device = device

    def set_clip_options(self, options: dict) -> None:
        if options.get("layer") is not None:
            raise ValueError(
                "Expected no CLIP Set Last Layer before the tiny text encoder, which has no layers, got "
                "one. Connect the CLIP without that node."
            )
        self.device = options.get("execution_device", self.device)

    def reset_clip_options(self) -> None:
        """No state is kept between prompts."""

    def encode_token_weights(self, tokens: dict[str, list[Tensor]]) -> tuple[Tensor, None]:
        """Context (b, n, c) in float32; there is no pooled output."""
        ids = torch.stack(tokens["spatialweave_tiny"]).to(self.device)
        return self(ids).float(), None

    def load_sd(self, state: dict[str, Tensor]):
        return self.load_state_dict(state, strict=True, assign=getattr(self, "can_assign_sd", False))


def tiny_clip(state: dict[str, Tensor]) -> comfy.sd.CLIP:
    """A core CLIP around the tiny encoder's weights."""
    target = comfy.supported_models_base.ClipTarget(tokenizer=TinyTokenizer, clip=TinyCondModel)
    values = sum(tensor.numel() for tensor in state.values())
    options = {"dtype": torch.float32, "spatialweave_tiny": read_layout(state)}
    return comfy.sd.CLIP(target, parameters=values, state_dict=[state], model_options=options)
