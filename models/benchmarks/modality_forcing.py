"""Evaluation of Modality Forcing on held-out scenes of the procedural world: the scores in
docs/evaluation.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.evaluation.metrics import abs_rel, delta
from ..core.geometry.align import align_scale
from ..core.geometry.view import View
from ..modality_forcing.pipeline import ModalityForcingPipeline
from ..world.judges.scorer import Scorer
from ..world.judges.scorer_evaluation import scorer_accuracy
from .held_out import HeldOut, held_out_batches

DEPTH_STEPS = 10  # of every image-to-depth run below


def evaluate_modality_forcing(
    preset: str = "tiny",
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    count: int = 128,
    batch: int = 16,
) -> dict[str, float]:
    """Scores by name.

    Depth errors are scale-aligned per image (median); captions are judged by the world's scorer.

    image_to_depth.*: inferred depth of a rendered image against its exact depth, where that is finite (no
    sky). joint.absrel: generated depth against the depth that the same model infers from the generated image.
    depth_to_image.absrel: depth inferred from the image generated for an exact depth, against that depth.
    caption.agreement: fraction of the facts in a caption (objects, sides, depth order) that hold in the
    generated image; caption.all_facts: fraction of the captions with all of them. scorer.accuracy: accuracy
    of the scorer.
    """
    if count < 1:
        raise ValueError(f"Expected at least 1 scene, got {count}. Set --n.")
    started = time.perf_counter()
    pipeline = ModalityForcingPipeline.from_preset(preset, **({"weights": weights} if weights else {}))
    scorer = Scorer.from_pretrained()
    tally = Tally()
    with tqdm(total=count, desc="evaluating", unit="scene") as bar:
        for held_out in held_out_batches(count, batch, pipeline.defaults.size):
            given = {"seed": seed + bar.n, "pipeline": pipeline, "held_out": held_out, "tally": tally}
            measure_image_to_depth(**given)
            measure_joint(**given, scorer=scorer)
            measure_depth_to_image(**given)
            bar.update(len(held_out.scenes))
    figures = tally.means()
    figures["scorer.accuracy"] = scorer_accuracy(scorer, max(count, 64))["accuracy"]
    figures |= {"scenes": count, "seed": seed, "seconds": round(time.perf_counter() - started, 1)}
    return {name: round(value, 4) for name, value in figures.items()}


class Tally:
    """Running means of figures, each weighted by its number of images."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, mean: float, count: int) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + mean * count
        self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def measure_image_to_depth(*, pipeline, held_out: HeldOut, tally: Tally, seed: int) -> None:
    view = infer_depth(pipeline, held_out.frames.image, seed)
    add_depth_figures(
        tally, "image_to_depth", view, held_out.frames.depth, (("absrel", abs_rel), ("delta1", delta))
    )


def measure_joint(*, pipeline, held_out: HeldOut, tally: Tally, seed: int, scorer: Scorer) -> None:
    made = pipeline(held_out.captions, mode="joint", seed=seed)
    inferred = infer_depth(pipeline, made.image, seed)
    add_depth_figures(tally, "joint", made.view, inferred.depth, (("absrel", abs_rel),))
    judgements = scorer.judge(made.image, held_out.captions)
    facts = [fact.holds for judgement in judgements for fact in judgement.facts]
    tally.add("caption.agreement", sum(facts) / len(facts), len(facts))
    tally.add(
        "caption.all_facts", sum(j.agreement == 1 for j in judgements) / len(judgements), len(judgements)
    )


def measure_depth_to_image(*, pipeline, held_out: HeldOut, tally: Tally, seed: int) -> None:
    made = pipeline(held_out.captions, mode="depth_to_image", depth=held_out.frames.depth, seed=seed)
    inferred = infer_depth(pipeline, made.image, seed)
    add_depth_figures(tally, "depth_to_image", inferred, held_out.frames.depth, (("absrel", abs_rel),))


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
                tally.add(f"{name}.{key}", measure(aligned, exact, valid), 1)
