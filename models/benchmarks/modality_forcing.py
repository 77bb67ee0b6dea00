"""Evaluation of Modality Forcing on held-out scenes of the procedural world: docs/evaluation.md."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.evaluation.metrics import abs_rel, delta, patch_steps
from ..core.geometry.align import align_scale
from ..core.geometry.view import View
from ..modality_forcing.pipeline import ModalityForcingPipeline
from ..world.judges.plausibility import examine
from ..world.judges.predictor import Predictor
from ..world.judges.scorer import Scorer
from ..world.judges.scorer_evaluation import scorer_accuracy
from .held_out import HELD_OUT_SEED, HeldOut, held_out_batches

DEPTH_STEPS = 10  # of every image-to-depth run below
OF_AN_IMAGE = "caption.agreement of an image"  # for the interval: facts of one image are not independent


def evaluate_modality_forcing(
    preset: str = "tiny",
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    scenes_seed: int = HELD_OUT_SEED,
    count: int = 256,
    batch: int = 16,
) -> dict[str, float]:
    """Scores by name.

    Depth errors are scale-aligned per image (median); captions are judged by the world's scorer.

    image_to_depth.*: inferred depth of a rendered image against its exact depth, where that is finite (no
    sky). joint.absrel: generated depth against the depth that the same model infers from the generated image.
    depth_to_image.absrel: depth inferred from the image generated for an exact depth, against that depth.
    caption.agreement: fraction of the facts in a caption (objects, sides, depth order) that hold in the
    generated image; caption.agreement_interval: half the width of its 95 % interval over the images;
    caption.all_facts: fraction of the captions with all of them. scorer.accuracy: accuracy of the scorer.
    joint.border_step, joint.inner_step: 1000 x mean step of generated log depth across and inside the borders
    of patches, and joint.blockiness, their quotient; render.*: the same of exact depth. objects.broken:
    fraction of the generated objects whose outline is broken, as the world's predictor sees them.
    """
    if count < 1:
        raise ValueError(f"Expected at least 1 scene, got {count}. Set --n.")
    started = time.perf_counter()
    pipeline = ModalityForcingPipeline.from_preset(preset, **({"weights": weights} if weights else {}))
    scorer, predictor = Scorer.from_pretrained(), Predictor.from_pretrained()
    tally = Tally()
    with tqdm(total=count, desc="evaluating", unit="scene") as bar:
        for held_out in held_out_batches(count, batch, pipeline.defaults.size, seed=scenes_seed):
            given = {"seed": seed + bar.n, "pipeline": pipeline, "held_out": held_out, "tally": tally}
            measure_image_to_depth(**given)
            measure_joint(**given, scorer=scorer, predictor=predictor)
            measure_depth_to_image(**given)
            bar.update(len(held_out.scenes))
    figures = tally.means()
    del figures[OF_AN_IMAGE]
    figures["caption.agreement_interval"] = tally.half_width(OF_AN_IMAGE)
    figures["joint.blockiness"] = figures["joint.border_step"] / figures["joint.inner_step"]
    figures["scorer.accuracy"] = scorer_accuracy(scorer, max(count, 64))["accuracy"]
    figures |= {
        "scenes": count,
        "seed": seed,
        "scenes_seed": scenes_seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return {name: round(value, 4) for name, value in figures.items()}


class Tally:
    """The values of each figure, one per image (or per object)."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, name: str, *values: float) -> None:
        self.values.setdefault(name, []).extend(values)

    def means(self) -> dict[str, float]:
        return {name: statistics.fmean(values) for name, values in self.values.items()}

    def half_width(self, name: str) -> float:
        """Half the width of the 95 % interval of a mean over images, by the normal distribution."""
        values = self.values[name]
        return 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def measure_image_to_depth(*, pipeline, held_out: HeldOut, tally: Tally, seed: int) -> None:
    view = infer_depth(pipeline, held_out.frames.image, seed)
    add_depth_figures(
        tally, "image_to_depth", view, held_out.frames.depth, (("absrel", abs_rel), ("delta1", delta))
    )


def measure_joint(
    *, pipeline, held_out: HeldOut, tally: Tally, seed: int, scorer: Scorer, predictor: Predictor
) -> None:
    made = pipeline(held_out.captions, mode="joint", seed=seed)
    inferred = infer_depth(pipeline, made.image, seed)
    add_depth_figures(tally, "joint", made.view, inferred.depth, (("absrel", abs_rel),))
    judgements = scorer.judge(made.image, held_out.captions)
    tally.add("caption.agreement", *(float(f.holds) for judgement in judgements for f in judgement.facts))
    tally.add(OF_AN_IMAGE, *(judgement.agreement for judgement in judgements))
    tally.add("caption.all_facts", *(float(judgement.agreement == 1) for judgement in judgements))
    add_steps(tally, "joint", made.view.depth, pipeline.config.depth_patch)
    add_steps(tally, "render", held_out.frames.depth, pipeline.config.depth_patch)
    for found in examine(predictor.read(made.image)):
        tally.add("objects.broken", *[1.0] * found.broken, *[0.0] * (found.solids - found.broken))


def measure_depth_to_image(*, pipeline, held_out: HeldOut, tally: Tally, seed: int) -> None:
    made = pipeline(held_out.captions, mode="depth_to_image", depth=held_out.frames.depth, seed=seed)
    inferred = infer_depth(pipeline, made.image, seed)
    add_depth_figures(tally, "depth_to_image", inferred, held_out.frames.depth, (("absrel", abs_rel),))


def add_steps(tally: Tally, name: str, depth: Tensor, patch: int) -> None:
    """`patch_steps` of each depth (b, h, w) that is not sky throughout."""
    for one in depth[:, None]:
        mask = torch.isfinite(one) & (one > 0)
        if mask.any():
            border, inner = patch_steps(one.where(mask, 0.0), mask, patch)
            tally.add(f"{name}.border_step", 1000 * border)
            tally.add(f"{name}.inner_step", 1000 * inner)


def infer_depth(pipeline, image: Tensor, seed: int) -> View:
    return pipeline("", mode="image_to_depth", image=image, steps=DEPTH_STEPS, seed=seed).view


def add_depth_figures(
    tally: Tally, name: str, view: View, target: Tensor, figures: tuple[tuple[str, Callable], ...]
) -> None:
    """Compare where the target (b, h, w) is finite.

    A pixel predicted as sky has depth 0 and so the full error.
    """
    mask = torch.isfinite(target) & (target > 0)
    for pred, exact, valid in zip(view.depth, target, mask, strict=True):
        if valid.any():
            pred, exact, valid = pred[None], exact[None], valid[None]
            aligned = align_scale(pred, exact, valid & (pred > 0)).apply(pred)
            for key, measure in figures:
                tally.add(f"{name}.{key}", measure(aligned, exact, valid))
