"""The tiny text encoder as a core CLIP, so that CLIPTextEncode and the conditioning nodes take it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import comfy.ops
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor

from ....models.tiny.text import TOKENS, TinyTextEncoder, explain_prompt, read_layout, tokenize
from ....models.tiny.vocabulary import VOCABULARY
from .notes import running_node, show

logger = logging.getLogger("spatialweave.text")


@dataclass(frozen=True)
class Wording:
    """What a tiny text encoder reads: its words, how many of them, and how texts become ids."""

    vocabulary: Sequence[str]
    tokens: int
    tokenize: Callable[[list[str]], Tensor]  # ids (b, n); may refuse a text by a ValueError
    explain: Callable[[str], str | None]  # what it does not read of a text, else None


CAPTIONS = Wording(VOCABULARY, TOKENS, tokenize, explain_prompt)


class TinyTokenizer:
    """Prompts to token ids. What the model cannot read is logged, and shown under the node that encodes."""

    def __init__(self, wording: Wording = CAPTIONS, embedding_directory=None, tokenizer_data=None):
        self.wording = wording

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs
    ) -> dict[str, list[Tensor]]:
        notice = self.wording.explain(text)
        if notice:
            logger.warning(notice)
        show(notice or "", running_node())
        return {"spatialweave_tiny": list(self.wording.tokenize([text]))}

    def state_dict(self) -> dict:
        return {}


class TinyCondModel(TinyTextEncoder):
    """Core's text encoder interface. Without layers, the options of CLIP Set Last Layer are refused."""

    def __init__(self, *, dtype=None, device=None, model_options=None):
        super().__init__(
            **model_options["spatialweave_tiny"], operations=comfy.ops.manual_cast, device=device,
            dtype=dtype,
        )  # fmt: skip
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


def tiny_clip(state: dict[str, Tensor], wording: Wording = CAPTIONS) -> comfy.sd.CLIP:
    """A core CLIP around a tiny encoder's weights."""
    tokenizer = partial(TinyTokenizer, wording)
    target = comfy.supported_models_base.ClipTarget(tokenizer=tokenizer, clip=TinyCondModel)
    values = sum(tensor.numel() for tensor in state.values())
    width, layers = read_layout(state)
    sizes = {"width": width, "layers": layers, "vocabulary": wording.vocabulary, "tokens": wording.tokens}
    options = {"dtype": torch.float32, "spatialweave_tiny": sizes}
    return comfy.sd.CLIP(target, parameters=values, state_dict=[state], model_options=options)
