"""Geometry tokens in core's Flux: what is decided once a call, and the patches that carry it out.

An APPLY_MODEL wrapper checks the call and plans it, outside of what torch.compile traces; the post_input
patch appends the tokens and their ids; an attn1 patch weighs their keys. The plan of a call travels in its
own transformer_options, so that nothing of a run stays behind. Where a prompt has an area, core runs the
network on that part of the image: a CALC_COND_BATCH wrapper lets the call know which part it is.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.conds
import comfy.patcher_extension
import torch
import torch.nn.functional as F
from torch import Tensor

from ....models.spatial_diff.config import ConnectorConfig
from ....models.spatial_diff.tokens import grid_weights, holds_first_axis, key_bias, spread_ids
from .editor import check_attention, check_batch, check_cache, check_reference

PLANS = "spatialweave_geometry_tokens"  # of transformer_options: fusion -> its plan for this call
REFERENCES = "reference_image_num_tokens"  # core's: tokens of each reference; absent without references
KEY = "spatialweave_geometry_tokens"


@dataclass(frozen=True)
class Setting:
    """What the node's widgets say."""

    strength: float = 1.0
    start: float = 0.0  # of the steps, from 0 to 1
    end: float = 1.0
    mask: Tensor | None = None  # (b, h, w), white where tokens act


class Area(NamedTuple):
    """A part of an image in latent pixels: its corner, and the size of the whole."""

    top: float
    left: float
    height: float
    width: float


@dataclass
class Plan:
    """One call of the network: rows of tokens, chunk after chunk, and where they came to lie."""

    tokens: Tensor  # (chunks * b, q, width)
    weights: Tensor | None  # (chunks * b, q); None if all are 1
    target: int  # tokens of the edited image
    patch: int  # side in latent pixels of a token
    areas: tuple[Area, ...] | None = None  # a row each; None: the whole image
    is_on: bool = True
    before: int = 0  # keys before the tokens
    biases: dict[tuple, Tensor] = field(default_factory=dict)  # by length, dtype and device


class TokenFusion:
    """The tokens of one Geometry Tokens node in the sequence of one MODEL."""

    def __init__(
        self,
        tokens: Tensor,
        sizes: tuple[tuple[int, int], ...],
        config: ConnectorConfig,
        setting: Setting,
    ):
        """`tokens` (v, q, width) of the connector; `sizes` (height, width) of the images they are of."""
        self.config, self.sizes, self.setting = config, sizes, setting
        self.key = f"{KEY}_{uuid.uuid4().hex}"  # of the condition that says where an area lies
        weights = torch.full((1, config.queries), setting.strength)
        if setting.mask is not None:
            weights = weights * grid_weights(setting.mask, config.grid)
        self.count = max(len(tokens), len(weights))
        check_batch(min(len(tokens), len(weights)), self.count, "a mask or geometry tokens")
        kept = (weights > 0).any(dim=0)  # a token that no image takes is left out
        self.kept = None if bool(kept.all()) else kept
        self.tokens, self.weights = tokens[:, kept], weights[:, kept]
        self.is_weighed = bool((self.weights != 1).any())

    def attach(self, model: Any) -> Any:
        """A clone of a core MODEL with the tokens; without any token, the model as it was."""
        patched = model.clone()
        if not self.tokens.shape[1]:
            return patched
        wrappers = comfy.patcher_extension.WrappersMP
        patched.add_wrapper_with_key(wrappers.CALC_COND_BATCH, KEY, self.locate)
        patched.add_wrapper_with_key(wrappers.APPLY_MODEL, KEY, self.apply)
        patched.set_model_post_input_patch(TokenPatch(self, self.append))
        if self.is_weighed:
            patched.set_model_attn1_patch(TokenPatch(self, self.weigh))
        return patched

    def locate(self, executor, model, conds, x_in: Tensor, timestep: Tensor, model_options):
        """Core's CALC_COND_BATCH wrapper: if a prompt has an area, a map that core crops with the image."""
        if any("area" in each for prompts in conds for each in prompts or ()):
            more = {self.key: comfy.conds.CONDNoiseShape(map_positions(x_in))}
            conds = [
                prompts and [{**each, "model_conds": {**each["model_conds"], **more}} for each in prompts]
                for prompts in conds
            ]
        return executor(model, conds, x_in, timestep, model_options)

    def apply(
        self,
        executor,
        x: Tensor,
        t: Tensor,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options=None,
        **kwargs,
    ):
        """Core's APPLY_MODEL wrapper: check the call and plan it; out of range it stays as it is."""
        options, model = transformer_options or {}, executor.class_obj
        positions = kwargs.pop(self.key, None)
        self.check_call(options, model.latent_format.spacial_downscale_ratio, kwargs.get("ref_latents"))
        chunks = len(options.get("cond_or_uncond", (0,)))
        images = x.shape[0] // chunks
        check_batch(self.count, images, "geometry tokens (or a mask)")
        patch = model.diffusion_model.patch_size
        plan = self.plan(chunks, images, count_patches(x, patch), patch)
        plan.areas = None if positions is None else read_areas(positions)
        plan.is_on = self.is_on(model.model_sampling, float(t.max()))
        # out of range, too: compiled code copies the options with the keys of the first call
        options = {**options, PLANS: {**options.get(PLANS, {}), self: plan}}
        mask = kwargs.get("attention_mask")
        if mask is not None:
            image = sum(count_patches(each, patch) for each in (x, *(kwargs.get("ref_latents") or ())))
            own = sum(plan.tokens.shape[1] for plan in options[PLANS].values() if plan.is_on)
            kwargs["attention_mask"] = widen_mask(mask, c_crossattn.shape[1] + image + own)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def check_call(self, options: dict, ratio: int, references: list[Tensor] | None) -> None:
        """ValueError for what this call lacks; one of the negative prompt alone may lack the reference."""
        check_cache(options.get("patches", {}), self.setting.start, self.setting.end)
        if self.is_weighed:
            check_attention(options)
        if 0 in options.get("cond_or_uncond", (0,)):
            check_reference(references, self.sizes, ratio)

    def is_on(self, sampling: Any, sigma: float) -> bool:
        """Whether the tokens act at this sigma; both ends included, as for core's ControlNet."""
        first = math.inf if self.setting.start <= 0 else float(sampling.percent_to_sigma(self.setting.start))
        return first >= sigma >= float(sampling.percent_to_sigma(self.setting.end))

    def plan(self, chunks: int, images: int, target: int, patch: int) -> Plan:
        """Rows for a call: each chunk (positive, negative) has all images of the batch."""

        def rows(values: Tensor) -> Tensor:
            return values.expand(images, *values.shape[1:]).repeat(chunks, *(1,) * (values.ndim - 1))

        return Plan(rows(self.tokens), rows(self.weights) if self.is_weighed else None, target, patch)

    def append(self, args: dict[str, Any]) -> dict[str, Any]:
        """Core's post_input patch: tokens and ids at the end of the image stream."""
        options = args["transformer_options"]
        plan = options.get(PLANS, {}).get(self)
        if plan is None or not plan.is_on:
            return args
        img, ids, axis = args["img"], args["img_ids"], self.config.first_axis
        if holds_first_axis(ids, axis):
            raise ValueError(
                f"Expected no token with first id {axis:g}, this connector's own, got some: of another "
                "connector, or of a reference image under the reference method index. Use one connector "
                "with each first id, and the method offset for several references."
            )
        plan.before = args["txt"].shape[1] + ids.shape[1]
        out = {**args, "img_ids": torch.cat([ids, self.own_ids(ids[:, : plan.target], plan)], dim=1)}
        if img.shape[1] < ids.shape[1]:  # core's Flux KV Cache has cut what it keeps, our tokens with it
            return out
        if options.get(REFERENCES):  # a cache keeps the last so many rows, which are ours and the references'
            options[REFERENCES] = [*options[REFERENCES], plan.tokens.shape[1]]
        return {**out, "img": torch.cat([img, plan.tokens.to(img)], dim=1)}

    def own_ids(self, target: Tensor, plan: Plan) -> Tensor:
        """Ids (b, q, axes) of the tokens over the whole image, seen from a target's ids (b, n, axes)."""
        grid, axis = self.config.grid, self.config.first_axis
        if plan.areas is None:
            own = spread_ids(target[0], grid, axis).expand(len(target), -1, -1)
        else:
            pairs = zip(target, plan.areas, strict=True)
            wholes = (whole_corners(ids, area, plan.patch) for ids, area in pairs)
            own = torch.stack([spread_ids(corners, grid, axis) for corners in wholes])
        return own if self.kept is None else own[:, self.kept.to(own.device)]

    def weigh(self, q, k, v, pe=None, attn_mask=None, extra_options=None, **kwargs) -> dict[str, Any]:
        """Core's attn1 patch: strength as a bias on the tokens' keys, added to a mask that is there."""
        plan = extra_options.get(PLANS, {}).get(self)
        if plan is None or not plan.is_on or plan.weights is None:
            return {}
        total = pe.shape[2]  # of all keys, those too that a cache adds after this patch
        key = (total, q.dtype, q.device)
        if key not in plan.biases:
            plan.biases[key] = key_bias(plan.weights, plan.before, total).to(q)
        bias = plan.biases[key]
        return {"attn_mask": bias if attn_mask is None else additive(attn_mask, q) + bias}

    def to(self, device: torch.device) -> None:
        """Move the tokens; their precision is decided in each call."""
        self.tokens, self.weights = self.tokens.to(device), self.weights.to(device)


class TokenPatch:
    """A patch of a fusion that core moves between devices, and that torch.compile does not trace.

    Core's compile node ignores changes of transformer_options, so a traced patch would keep the first step's
    plan for all.
    """

    def __init__(self, fusion: TokenFusion, work: Callable):
        self.fusion, self.work = fusion, work
        self.untraced: Callable | None = None

    def to(self, device) -> TokenPatch:
        if isinstance(device, torch.device):
            self.fusion.to(device)
        return self

    def __call__(self, *args, **kwargs):
        # importing it takes seconds: only where something is compiled
        if self.untraced is None and "_dynamo" in vars(torch):
            self.untraced = torch.compiler.disable(self.work)
        return (self.untraced or self.work)(*args, **kwargs)


def map_positions(x: Tensor) -> Tensor:
    """For a latent (b, c, h, w), each pixel's row and column and the size of the whole, (1, 4, h, w)."""
    height, width = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sizes = (torch.full_like(rows, side) for side in (height, width))
    return torch.stack((rows, columns, *sizes)).float()[None].to(x.device)


def read_areas(positions: Tensor) -> tuple[Area, ...]:
    """The area of each row of a cropped map of positions (b, 4, h, w)."""
    return tuple(Area(*corner) for corner in positions[:, :, 0, 0].tolist())


def whole_corners(ids: Tensor, area: Area, patch: int) -> Tensor:
    """Ids (2, axes) of the first and the last token of a whole image, seen from an area's ids (n, axes)."""
    corners = ids.new_zeros(2, ids.shape[-1])
    for axis, start, size in ((1, area.top, area.height), (2, area.left, area.width)):
        corners[0, axis] = ids[:, axis].min() - start / patch
        corners[1, axis] = corners[0, axis] + math.ceil(size / patch) - 1
    return corners


def count_patches(latent: Tensor, patch: int) -> int:
    """Tokens of a latent (b, c, h, w)."""
    return math.ceil(latent.shape[-2] / patch) * math.ceil(latent.shape[-1] / patch)


def widen_mask(mask: Tensor, total: int) -> Tensor:
    """An attention bias (b, n, n) of text and target, as Redux has it, for `total` rows: 0 for the others."""
    missing = max(0, total - mask.shape[-1])
    return F.pad(mask, (0, missing, 0, missing)) if mask.shape[-2] == mask.shape[-1] else mask


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """An attention mask as a bias (b, 1, rows, keys) in the precision of `like`."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -math.inf)
    mask = mask[None] if mask.ndim == 2 else mask
    return (mask[:, None] if mask.ndim == 3 else mask).to(like)
