"""Settings of a MODEL patched by Intrinsic Co-Generation, and the checks before a run begins."""

from __future__ import annotations

from dataclasses import dataclass

from ....models.core.diffusion.ddpm import STEPS
from ....models.intrinsic_ldm.layers import Reading
from ....models.intrinsic_ldm.schedules import Constant, Cut
from .hooks import Change
from .layers import Base
from .refusals import check_nodes

KEY = "spatialweave_intrinsics"
JOIN = "Join them with Join Intrinsic Latent"


@dataclass(frozen=True)
class Settings:
    """One node's choices, bound to its base model."""

    base: Base
    schedule: Cut
    reading: Reading
    changes: list[Change]  # the intrinsic LoRA
    keep_maps: bool
    share_image_loras: bool
    node_id: str | None = None

    def weights(self, t: float) -> dict[int, float]:
        """w of every layer at DDPM time t, by the layer's index in the order of execution."""
        return {
            layer.block: self.schedule.weight(layer.number(self.reading), t) for layer in self.base.layers
        }

    @property
    def is_weighted(self) -> bool:
        """Whether attention needs a bias: some w is neither 0 nor 1, or not the same in every layer."""
        return self.schedule.schedule != Constant(1.0) and self.schedule.ceiling(STEPS) > 0

    def describe(self, spans: dict[str, list[float]], stopped_at: float | None, steps: int) -> str:
        """A sentence on a finished run; `spans` are the seconds of each prediction, by kind of prediction."""
        count, total = sum(map(len, spans.values())), sum(map(sum, spans.values()))
        coupled, alone = spans.get("coupled", []), spans.get("image alone", [])
        text = (
            f"{count} predictions in {steps} steps, {total:.2f} s; image and maps coupled in {len(coupled)}"
        )
        if not alone:
            return f"{text}, the maps' pass in all."
        full = coupled + spans.get("apart", [])
        text += f", the maps' pass stopped from t {stopped_at:.0f} on, in {len(alone)}"
        if not full:
            return f"{text}, which is all of them."
        each, short = sum(full) / len(full), sum(alone) / len(alone)
        saved = (each - short) * len(alone)
        return (
            f"{text}: {short:.3g} s per prediction instead of {each:.3g} s, {saved:.2f} s or "
            f"{saved / (total + saved):.0%} saved."
        )


def check_latents(shapes, base: Base) -> None:
    """Raise ValueError unless the latent is nested, of two streams (b, c, h, w) of one shape."""
    if not shapes or len(shapes) == 1:
        shape = tuple(shapes[0]) if shapes else ()
        raise ValueError(
            f"Expected a joint latent of an image and its intrinsic maps, got a plain one {shape}. {JOIN}."
        )
    listed = " and ".join(str(tuple(shape)) for shape in shapes)
    if len(shapes) != 2 or tuple(shapes[0]) != tuple(shapes[1]) or len(shapes[0]) != 4:
        raise ValueError(
            f"Expected a nested latent of an image and its maps of one shape (b, c, h, w), got {listed}. "
            f"{JOIN}."
        )
    if shapes[0][1] != base.channels:
        raise ValueError(
            f"Expected latents of {base.channels} channels, as {base.name} has, got {listed}. {JOIN}, with "
            "this model connected to it."
        )


def check_run(guider, sampler, settings: Settings) -> None:
    wrappers = (
        guider.model_options.get("transformer_options", {})
        .get("wrappers", {})
        .get("outer_sample", {})
        .get(KEY, [])
    )
    if len(wrappers) > 1:
        raise ValueError(
            "Expected one Intrinsic Co-Generation in the model's chain, as an image has one set of maps, got "
            "two. Remove one of them."
        )
    check_nodes(guider, sampler, share_image_loras=settings.share_image_loras)
