"""An IMAGE batch to VIEWs or geometry tokens, with a network from Load VGGT."""

from __future__ import annotations

from typing import NamedTuple

from comfy_api.latest import Input
from torch import Tensor

from ....models.core.geometry.view import View
from ....models.core.pictures import read_pictures
from ....models.vggt.config import MAX_VIEWS
from ....models.vggt.framing import Fit
from ....models.vggt.pipeline import GeometryTokens, Inputs, Source, check_heads, read_inputs, reconstruct
from ..shared.last_resort import describe
from .model import VggtModel


class Reconstructed(NamedTuple):
    """The outputs of VGGT Reconstruct."""

    view: View  # a batch with one view for each image
    transparent: Tensor  # (v, h, w), 1 where the images are transparent
    notes: tuple[str, ...]


def choose_images(image: Tensor | Input.Video, every: int) -> tuple[Tensor, tuple[str, ...]]:
    """(every n-th image of a batch or frame of a video (v, h, w, c), notes). ValueError for too many."""
    frames = image.get_components().images if isinstance(image, Input.Video) else image
    chosen = frames[::every] if isinstance(frames, Tensor) else frames
    if len(chosen) > MAX_VIEWS:
        raise ValueError(
            f"Expected 1 to {MAX_VIEWS} views of one scene, got {len(chosen)}. "
            f"Set every to {-(-len(frames) // MAX_VIEWS)} or more."
        )
    said = f"{len(chosen)} of {len(frames)} images, every = {every}." if every > 1 else None
    return chosen, (said,) if said else ()


def reconstruct_images(
    vggt: VggtModel, image: Tensor, *, fit: Fit, longer_side: int, source: Source, queries: int
) -> Reconstructed:
    """One view for each image (v, h, w, c) of a scene."""
    check_model(vggt)
    check_heads(vggt.config, source)
    inputs = read_inputs(image, vggt.config, fit, longer_side)
    need = vggt.describe_need(inputs)
    result = reconstruct(
        lambda framed: vggt.predict(inputs, ("camera", source), queries), inputs, vggt.config
    )
    return Reconstructed(result.view, find_transparent(image), (need, *result.notes))


def images_to_tokens(
    vggt: VggtModel, image: Tensor, *, fit: Fit, longer_side: int, queries: int
) -> tuple[GeometryTokens, tuple[str, ...]]:
    """The geometry tokens of images (v, h, w, c), and the notes."""
    check_model(vggt)
    inputs: Inputs = read_inputs(image, vggt.config, fit, longer_side)
    need = vggt.describe_need(inputs)
    tokens = vggt.encode(inputs, queries)
    rows, columns = tokens.grid
    shape = f"{len(tokens.tokens)} x {tokens.tokens.shape[1]} tokens of {tokens.tokens.shape[2]} channels"
    return tokens, (need, *inputs.notes, f"{shape}, on a grid of {rows} x {columns} patches.")


def check_model(vggt) -> None:
    if not isinstance(vggt, VggtModel):
        raise ValueError(f"Expected a VGGT network, got {describe(vggt)}. Wire that of Load VGGT.")


def find_transparent(image: Tensor) -> Tensor:
    """1 - alpha of an IMAGE (v, h, w, c), 0 without an alpha channel."""
    alpha = read_pictures(image).alpha
    return image.new_zeros(image.shape[:3]) if alpha is None else 1 - alpha
