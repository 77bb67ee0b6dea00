"""A MODEL whose network reads z_t + F: two of core's wrappers, nothing replaced and nothing hooked.

CALC_COND_BATCH gives each prompt F as a condition of the latent's shape, which core crops to areas, repeats
and batches as it does with the latent. APPLY_MODEL adds it. The network reads c_in x, so F / c_in is added
to x, and what the model's prediction type adds back of it, c_skip F / c_in, is subtracted from the result.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import comfy.conds
import comfy.patcher_extension
import torch
import torch.nn.functional as F
from torch import Tensor

from ....models.core.geometry.view import View
from ....models.spatial_fusion.network import AdapterNetwork
from ....models.spatial_fusion.pipeline import Framing, view_to_addend
from .latents import check_latent_format, fit_addend, picture_shape

Wrappers = comfy.patcher_extension.WrappersMP


@dataclass
class Patch:
    """One use of an adapter on a MODEL. F is computed when the first step shows the latent's size."""

    adapter: AdapterNetwork
    view: View
    strength: float
    start: float  # of the sampling, as a share
    end: float
    framing: Framing
    mask: Tensor | None  # (b, h, w) in [0, 1]
    say: Callable[[Sequence[str]], None]  # shows notes under the node
    # core replaces a condition of the same name, so two patches must not share one
    key: str = field(default_factory=lambda: f"spatialweave_depth_{uuid.uuid4().hex}")
    size: tuple[int, int] | None = None  # of `addend`
    addend: Tensor | None = None  # (n, c, h, w), times mask and strength

    def is_on(self, sampling, sigma: float) -> bool:
        """Whether the step at this noise level lies between start and end."""
        # percent_to_sigma(0) of flow models is 1, which a shifted schedule's first step may exceed
        highest = math.inf if self.start <= 0 else sampling.percent_to_sigma(self.start)
        return sampling.percent_to_sigma(self.end) <= sigma <= highest

    def find_addend(self, size: tuple[int, int]) -> Tensor:
        """F for latents of `size` (height, width), computed once; ValueError if the VIEW does not fit."""
        if self.size != size:
            found = view_to_addend(self.adapter, self.view, size, framing=self.framing)
            values = found.values * self.strength
            if self.mask is not None:
                mask = F.interpolate(self.mask[:, None].float(), size, mode="area")
                values = values * (mask if len(values) == 1 else match_rows(mask, len(values), "masks"))
            self.addend, self.size = values, size
            self.say(found.notes)
        return self.addend

    def give(self, executor, model, conds, x_in: Tensor, timestep: Tensor, model_options):
        """CALC_COND_BATCH: F beside the prompts' own conditions, in copies of them."""
        if self.is_on(model.model_sampling, float(timestep.max())):
            shapes = model.latent_shapes
            addend = self.find_addend(tuple(picture_shape(x_in, shapes)[-2:]))
            addend = match_rows(addend, len(x_in), "depth maps or masks")
            condition = comfy.conds.CONDNoiseShape(fit_addend(addend, x_in, shapes))
            more = {self.key: condition}
            conds = [
                prompts and [{**each, "model_conds": {**each["model_conds"], **more}} for each in prompts]
                for prompts in conds
            ]
        return executor(model, conds, x_in, timestep, model_options)

    def add(
        self, executor, x: Tensor, t: Tensor, c_concat=None, c_crossattn=None, control=None,
        transformer_options=None, **conditions,
    ):  # fmt: skip
        """APPLY_MODEL: x with F in it, and a result without what the prediction type adds back of F."""
        given = {} if transformer_options is None else transformer_options
        addend = conditions.pop(self.key, None)
        if addend is None:
            return executor(x, t, c_concat, c_crossattn, control, given, **conditions)
        sampling = executor.class_obj.model_sampling
        addend = addend.to(x) / sampling.calculate_input(t, torch.ones_like(x))
        result = executor(x + addend, t, c_concat, c_crossattn, control, given, **conditions)
        return result - sampling.calculate_denoised(t, torch.zeros_like(x), addend)


def match_rows(values: Tensor, count: int, what: str) -> Tensor:
    """One row for all, or `count` rows; ValueError names both counts."""
    if len(values) not in (1, count):
        raise ValueError(
            f"Expected {count} {what} for {count} images, or one for all, got {len(values)}. Change a batch "
            "size."
        )
    return values


def with_depth(
    model, adapter: AdapterNetwork, view: View, *, strength: float, start: float, end: float,
    framing: Framing, mask: Tensor | None, say: Callable[[Sequence[str]], None],
):  # fmt: skip
    """A clone of MODEL that denoises z_t + F from start to end; at strength 0 a clone alone."""
    check_latent_format(model, adapter.config)
    view.require_valid()
    if start > end:
        raise ValueError(
            f"Expected start_percent at most end_percent, got {start:g} and {end:g}. Correct one of them."
        )
    patched = model.clone()
    if strength:
        patch = Patch(adapter, view, strength, start, end, framing, mask, say)
        patched.add_wrapper_with_key(Wrappers.CALC_COND_BATCH, patch.key, patch.give)
        patched.add_wrapper_with_key(Wrappers.APPLY_MODEL, patch.key, patch.add)
    return patched
