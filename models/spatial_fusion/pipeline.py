"""A prompt's keys and values to a VIEW; a VIEW to the addend of a latent, by the depth adapter.

    transformer = load_spatial_transformer("spatial_transformer.safetensors")
    semantic = read_semantic_state(mllm, input_ids, attention_mask, transformer.config)
    view = infer_view(transformer, transformer.config, semantic, (512, 512))
    adapter = load_adapter("depth_adapter.safetensors")
    addend = view_to_addend(adapter, view, (64, 64))  # F, for latents (b, c, 64, 64)
    with adding(pipe.unet, addend.values):  # a network of diffusers then reads z_t + F
        image = pipe("a red ball", height=512, width=512).images[0]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..core.geometry.resize import resize_bicubic
from ..core.geometry.view import View
from ..vggt.network import IMAGENET_MEAN, IMAGENET_STD
from .config import SpatialTransformerConfig
from .depth_code import code_depth, resize_code
from .mllm import repeat_prompt
from .network import AdapterNetwork, InferredDepth, SemanticState, plan_depth

Framing = Literal["refuse", "crop", "pad", "stretch"]


@torch.no_grad()
def infer_view(
    infer: Callable[..., InferredDepth], config: SpatialTransformerConfig, semantic: SemanticState,
    size: tuple[int, int], image: Tensor | None = None,
) -> View:  # fmt: skip
    """The VIEW of images of `size` (height, width) that do not exist yet, one for each prompt.

    infer: a `SpatialTransformer`, or a host's call of it. image: the sources of edits (b, h, w, 3) in
    [0, 1], which are scaled to the grid of queries; one prompt serves all of them, one image all prompts.
    """
    plan, framed = plan_depth(config, size), None
    if image is not None:
        sides = tuple(side * config.patch for side in plan.grid)
        mean, std = (image.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        framed = (resize_bicubic(rearrange(image, "b h w c -> b c h w"), sides) - mean) / std
        if len(framed) > 1:
            semantic = repeat_prompt(semantic, len(framed))
    found = infer(semantic, plan.grid, plan.size, image=framed)
    depth, confidence = (values.float().cpu() for values in found)
    return View.from_depth(depth, units="relative", confidence=confidence)


@dataclass(frozen=True)
class Addend:
    """F for one size of latent, and what was done to the VIEW."""

    values: Tensor  # (b, c, h, w) float32
    notes: tuple[str, ...] = ()


@torch.no_grad()
def view_to_addend(
    adapter: AdapterNetwork, view: View, size: tuple[int, int], *, framing: Framing = "refuse"
) -> Addend:
    """F = E(D) for latents of `size` (height, width).

    A VIEW of another aspect than the latent's is refused, or its middle is cropped, or it is padded with
    invalid depth, or stretched. ValueError if a map has no valid pixel.
    """
    config = adapter.config
    target = (size[0] * config.stride, size[1] * config.stride)
    depth, mask, notes = frame_depth(view.require_valid(), target, config.stride, framing)
    empty = (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"Expected a valid pixel in the middle of depth map {empty[0]} of {len(view)}, to which it is "
            "cropped, got none. Use pad or stretch, or a VIEW of the latent's aspect."
        )
    coded = code_depth(depth, mask, code=config.code, bound=config.bound, least_iqr=config.least_iqr)
    coded, mask = resize_code(coded, mask, target)
    device = next(adapter.parameters()).device
    return Addend(adapter(coded.to(device), mask.to(device)).float(), notes)


def frame_depth(
    view: View, target: tuple[int, int], stride: int, framing: Framing
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Depth and mask in the aspect of `target` (height, width), at the VIEW's own resolution, and notes.

    Aspects count as equal if, scaled to one side, the other differs by less than a latent cell.
    """
    if framing not in get_args(Framing):
        raise ValueError(f"Expected one of {', '.join(get_args(Framing))}, got {framing!r}. Choose one.")
    (height, width), (rows, columns) = view.depth.shape[-2:], target
    # the VIEW's width and height when scaled to the target's other side
    wide, tall = width * rows / height, height * columns / width
    if abs(wide - columns) < stride or abs(tall - rows) < stride or framing == "stretch":
        return view.depth, view.mask, ()
    sizes = f"{columns} x {rows} pixels, got one of {width} x {height}"
    if framing == "refuse":
        raise ValueError(
            f"Expected a VIEW of the latent's aspect, {sizes}. Set framing to crop, pad or stretch, or "
            "choose a latent of the VIEW's aspect."
        )
    if framing == "crop":
        kept = (height, max(1, round(height * columns / rows))) if wide > columns else (
            max(1, round(width * rows / columns)), width,
        )  # fmt: skip
        top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
        part = (slice(None), slice(top, top + kept[0]), slice(left, left + kept[1]))
        lost = 1 - kept[0] * kept[1] / (height * width)
        note = f"Of the VIEW of {width} x {height}, {lost:.0%} is cropped to the latent's aspect."
        return view.depth[part], view.mask[part], (note,)
    more = (0, round(height * columns / rows) - width) if wide < columns else (
        round(width * rows / columns) - height, 0,
    )  # fmt: skip
    sides = (more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2)
    note = f"The VIEW of {width} x {height} is padded with invalid depth to the latent's aspect."
    return F.pad(view.depth, sides), F.pad(view.mask, sides), (note,)


@contextmanager
def adding(network: nn.Module, addend: Tensor) -> Iterator[None]:
    """While open, a network of diffusers reads its latents plus `addend` (b, c, h, w).

    Its input is (b, c, h, w), or FLUX's packed (b, n, 4 c), the first n tokens of which get the addend. Rows
    of several prompts follow each other, each with all images.
    """

    def add(module: nn.Module, args: tuple, kwargs: dict):
        name = next((key for key in ("sample", "hidden_states") if key in kwargs), None)
        x = kwargs[name] if name else args[0]
        changed = add_to_latents(x, addend)
        if name:
            return args, kwargs | {name: changed}
        return (changed, *args[1:]), kwargs

    hook = network.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def add_to_latents(x: Tensor, addend: Tensor) -> Tensor:
    """Latents (b, c, h, w) or packed (b, n, 4 c) plus an addend (1 or b / prompts, c, h, w)."""
    if len(x) % len(addend):
        raise ValueError(
            f"Expected as many depth maps as images, or one, got {len(addend)} for {len(x)} rows. Change one."
        )
    addend = addend.to(x).repeat(len(x) // len(addend), 1, 1, 1)
    if x.ndim == 3:
        addend = rearrange(addend, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
    if addend.shape[2:] != x.shape[2:] or addend.shape[1] > x.shape[1]:
        raise ValueError(
            f"Expected latents {tuple(x.shape)} as the adapter's, got an addend {tuple(addend.shape)}. "
            "Compute it for this size."
        )
    changed = x.clone()
    changed[:, : addend.shape[1]] += addend
    return changed
