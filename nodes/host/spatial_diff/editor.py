"""Which editors take geometry tokens, and what a run lacks for them: a sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.ldm.flux.model
import comfy.model_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ....models.spatial_diff.config import Base, ConnectorConfig
from ....models.spatial_diff.tokens import CLOSED, fits_image
from ....models.vggt.pipeline import GeometryTokens
from ..shared.last_resort import describe
from .connector import ConnectorModel

FAMILIES: dict[type, Base] = {comfy.model_base.Flux: "flux", comfy.model_base.Flux2: "flux2"}
NAMES: dict[Base, str] = {"flux": "Flux-Kontext", "flux2": "FLUX.2"}
QWEN = (
    "its attention ignores a bias on the tokens, and tokens behind the reference would get time step 0"
)


def editor_family(model: Any) -> Base:
    """The family of a core MODEL; ValueError names an editor that has no sequence for geometry tokens."""
    inner = getattr(model, "model", None)
    network = getattr(inner, "diffusion_model", None)
    family = FAMILIES.get(type(inner))
    if family is not None and type(network) is comfy.ldm.flux.model.Flux:
        return family
    known = type(getattr(inner, "model_config", model))
    reason = "it has no image stream that geometry tokens could join"
    if isinstance(inner, comfy.model_base.QwenImage):
        reason = QWEN
    elif isinstance(network, comfy.ldm.flux.model.Flux) or family is not None:
        reason = "it is not the network that connectors are trained with"
    raise ValueError(
        f"Expected a Flux-Kontext or FLUX.2 editor at model, got {known.__name__}: {reason}. Load one of "
        "these two with Load Diffusion Model."
    )


def check_connector(model: Any, connector: Any) -> None:
    """ValueError unless the connector is of this editor's family and width."""
    if not isinstance(connector, ConnectorModel):
        raise ValueError(
            f"Expected a geometry connector, got {describe(connector)}. Wire that of Load Geometry Connector."
        )
    config, family = connector.config, editor_family(model)
    width = model.model.diffusion_model.hidden_size
    if (config.base, config.width) != (family, width):
        raise ValueError(
            f"Expected a connector for {NAMES[family]} of width {width}, as the model is, got one for "
            f"{NAMES[config.base]} of width {config.width}. Load the connector that was trained with this "
            "model."
        )


def check_tokens(tokens: Any, config: ConnectorConfig) -> None:
    """ValueError unless these are geometry tokens of the network that the connector was trained with."""
    if not isinstance(tokens, GeometryTokens):
        raise ValueError(
            f"Expected geometry tokens, got {describe(tokens)}. Wire those of VGGT Geometry Tokens."
        )
    channels = tokens.tokens.shape[-1]
    if channels != config.geometry_width:
        raise ValueError(
            f"Expected geometry tokens of {config.geometry_width} channels, which the connector was trained "
            f"with, got {channels}. Choose the fitting network in Load VGGT."
        )
    if not bool(tokens.tokens.isfinite().all()):
        raise ValueError(
            "Expected finite geometry tokens, got NaN or infinite numbers. Run VGGT in bfloat16 or float32 "
            "(float16 overflows)."
        )


def check_range(start: float, end: float) -> None:
    """ValueError unless the range holds a part of the steps."""
    if not start < end:
        raise ValueError(
            f"Expected a start_percent below end_percent, got {start:g} and {end:g}. Exchange them, or set "
            "0 and 1 for all steps."
        )


def check_batch(count: int, images: int, what: str) -> None:
    """ValueError unless there is one of `what`, or one for each image of the batch."""
    if count not in (1, images):
        raise ValueError(
            f"Expected {what} of one image, or of each of the {images} images of the batch, got {count}. "
            f"Give one, or {images}."
        )


def check_reference(
    references: Sequence[Tensor] | None, sizes: Sequence[tuple[int, int]], ratio: int
) -> None:
    """ValueError unless a reference latent can be of the images (height, width) that the tokens are of.

    `ratio`: pixels a latent pixel.
    """
    if not references:
        raise ValueError(
            "Expected a reference latent in the conditioning, got none: geometry tokens describe the image "
            "that is edited. Put Reference Latent between the text encoder and the sampler."
        )
    latents = [tuple(reference.shape[-2:]) for reference in references]
    for size in sizes:
        if not any(fits_image(size, latent, ratio) for latent in latents):
            shown = " and ".join(f"{width * ratio} x {height * ratio}" for height, width in latents)
            raise ValueError(
                f"Expected geometry tokens of a reference image, {shown} pixels (width x height), got tokens "
                f"of an image of {size[1]} x {size[0]}. Wire the image that goes into VAE Encode into VGGT "
                "Geometry Tokens, too."
            )


def check_cache(patches: dict[str, list], start: float, end: float) -> None:
    """ValueError for a part of the steps under core's Flux KV Cache, which keeps the first step's tokens."""
    cached = any(type(patch).__name__ == "KV_Attn_Input" for patch in patches.get("attn1_patch", ()))
    if cached and (start > 0 or end < 1):
        raise ValueError(
            f"Expected start_percent 0 and end_percent 1 with Flux KV Cache, got {start:g} and {end:g}: the "
            "cache keeps the tokens of the first step for all others. Set 0 and 1, or take Flux KV Cache off."
        )


def check_attention(options: dict[str, Any]) -> None:
    """ValueError if an attention function of another node ignores masks, by which the tokens are weighed.

    Measured on four keys, of which a mask closes the two with other values.
    """
    override = options.get("optimized_attention_override")
    if override is None:
        return
    q = torch.zeros(1, 1, 4, 64)
    values = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(1, 1, 4, 64).contiguous()
    closed = torch.tensor([0.0, 0.0, CLOSED, CLOSED])[None, None, None].expand(1, 1, 4, 4)
    out = optimized_attention(q, q, values, 1, mask=closed, skip_reshape=True, transformer_options=options)
    if float(out.abs().max()) > 0.1:
        raise ValueError(
            "Expected an attention function that applies masks, which weigh the tokens, got "
            f"{getattr(override, '__qualname__', type(override).__name__)} of another node, which ignores "
            "them. Take that node off, or set strength 1 without a gray mask."
        )
