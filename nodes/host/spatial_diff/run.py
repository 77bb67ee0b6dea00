"""Geometry tokens, a connector and an editor to the editor with the tokens in its sequence."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....models.vggt.pipeline import GeometryTokens
from .connector import ConnectorModel
from .editor import check_connector, check_range, check_tokens
from .fusion import Setting, TokenFusion


def add_tokens(
    model: Any, tokens: GeometryTokens, connector: ConnectorModel, setting: Setting
) -> tuple[Any, list[str]]:
    """The MODEL with the tokens, and what to know of it. The connector runs here, once."""
    check_connector(model, connector)
    check_tokens(tokens, connector.config)
    check_range(setting.start, setting.end)
    if setting.mask is not None:
        check_mask(setting.mask)
    if setting.strength == 0:
        return model.clone(), ["Strength 0: no token is added."]
    sizes = tuple(frame.size for frame in tokens.frames)
    fusion = TokenFusion(connector.run(tokens.tokens), sizes, connector.config, setting)
    return fusion.attach(model), describe_fusion(fusion)


def check_mask(mask: Tensor) -> None:
    """ValueError unless a MASK (b, h, w) holds numbers."""
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(f"Expected a mask (b, h, w), got {tuple(mask.shape)}. Paint it again.")
    if not bool(mask.isfinite().all()):
        raise ValueError(
            "Expected a mask of numbers from 0 to 1, got NaN or infinite numbers. Paint it again."
        )


def describe_fusion(fusion: TokenFusion) -> list[str]:
    """How many tokens the sequence gets."""
    count, whole = fusion.tokens.shape[1], fusion.config.queries
    rows, columns = fusion.config.grid
    left_out = "" if count == whole else f"; the mask leaves {whole - count} of them out"
    return [f"{whole} tokens on a grid of {rows} x {columns}{left_out}."]
