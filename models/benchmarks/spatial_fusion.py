"""Evaluation of a depth adapter on the tiny base: do generated images follow the depth of held-out scenes?

Each scene's caption is sampled from the same noise by the base alone, with the adapter on the scene's exact
depth, and with the adapter on the depth of the next scene, which the caption does not describe. Judges that
were trained on the world alone read the images:

    relation            share of the caption's relations (left, right, in front, behind) that hold, with its
                        95 % interval
    objects             share of the caption's objects that are there
    depth_absrel        depth of the image against the depth that was given (the base: the scene's), affine
    segmentation_miou   its solids against the scene's

`rendered` is what the judges say of the renderings themselves. overhead: processor time of a sampling with
the adapter over one without, median of the batches.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.geometry.view import View
from ..intrinsic_ldm import tiny
from ..intrinsic_ldm.backbones import LatentDiffusion, load_tiny
from ..intrinsic_ldm.config import GUIDANCE, STEPS
from ..intrinsic_ldm.pipeline import make_scheduler
from ..intrinsic_ldm.sampling import draw_noise, sample_streams
from ..spatial_fusion.network import AdapterNetwork
from ..spatial_fusion.pipeline import view_to_addend
from ..spatial_fusion.weights import TINY_ADAPTER, load_adapter
from ..world.captions import parse_caption
from ..world.judges.predictor import Predictor
from ..world.judges.scene_maps import SceneMaps, compare_maps, exact_maps
from ..world.judges.scorer import Scorer
from .held_out import HeldOut, held_out_batches
from .intervals import proportion_interval, summarize_seeds

VARIANTS = ("base", "true_depth", "other_depth", "rendered")
SEED_STRIDE = 1_000_003  # between the noise seeds of two sampling seeds
MAPS = ("depth_absrel", "segmentation_miou")


@dataclass(frozen=True)
class AdapterPlan:
    """The settings that all variants share."""

    count: int = 128
    seeds: int = 1
    strength: float = 2.0  # best of 1, 1.5 and 2 for the tiny adapter, on scenes of another seed
    end: float = 0.5  # of the sampling; the tiny adapter was trained on the noise levels before it
    steps: int = STEPS
    guidance: float = GUIDANCE
    batch: int = 16

    def __post_init__(self) -> None:
        if min(self.count, self.batch) < 2 or min(self.seeds, self.steps) < 1 or not 0 <= self.end <= 1:
            raise ValueError(
                "Expected at least 2 scenes and 2 a batch, 1 seed and step, and end from 0 to 1, got "
                f"{self}. Correct them."
            )


def evaluate_depth_adapter(weights: str | Path | None = None, *, plan: AdapterPlan) -> dict[str, Any]:
    """variants.<name>.<figure>, overhead, and the settings. `weights` is an adapter of the tiny base."""
    adapter, base = load_adapter(weights or TINY_ADAPTER), load_tiny()
    judges = Scorer.from_pretrained(), Predictor.from_pretrained()
    counts: dict[str, dict[str, list[int]]] = {name: {"relation": [], "objects": []} for name in VARIANTS}
    maps: dict[str, dict[int, dict[str, list[float]]]] = {name: {} for name in VARIANTS}
    ratios: list[float] = []
    with tqdm(total=plan.count * plan.seeds, desc="evaluating", unit="scene", disable=None) as bar:
        for seed in range(plan.seeds):
            done = 0
            for scenes in held_out_batches(plan.count, plan.batch, tiny.SIZE):
                images, seconds = sample_variants(base, adapter, scenes, plan, seed * SEED_STRIDE + done)
                ratios.append(seconds["true_depth"] / max(seconds["base"], 1e-9))
                for name, image in images.items():
                    judge_images(image, name, scenes, judges, counts[name], maps[name].setdefault(seed, {}))
                done += len(scenes.scenes)
                bar.update(len(scenes.scenes))
    variants = {name: describe_variant(counts[name], maps[name]) for name in VARIANTS}
    return {"variants": variants, "overhead": sorted(ratios)[len(ratios) // 2], "settings": vars(plan)}


def describe_variant(
    counts: Mapping[str, list[int]], maps: Mapping[int, Mapping[str, list[float]]]
) -> dict[str, Any]:
    """The figures of one variant: shares with their interval, map figures with mean and error over seeds."""
    figures: dict[str, Any] = {}
    for name, hits in counts.items():
        low, high = proportion_interval(sum(hits), max(1, len(hits)))
        share = sum(hits) / max(1, len(hits))
        figures[name] = {"share": share, "interval": [low, high], "of": len(hits)}
    for name in MAPS:
        means = [torch.tensor(rows[name]).nanmean().item() for rows in maps.values()]
        figures[name] = summarize_seeds(means)
    return figures


def sample_variants(
    base: LatentDiffusion, adapter: AdapterNetwork, scenes: HeldOut, plan: AdapterPlan, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Images (b, h, w, 3) in [0, 1] of each variant, and processor seconds of each sampling."""
    view = View.from_depth(scenes.frames.depth, units="metric")
    size = tuple(side // tiny.VAE.stride for side in view.depth.shape[1:])
    images, seconds = {"rendered": scenes.frames.image}, {}
    for name in ("base", "true_depth", "other_depth"):
        started = time.process_time()
        addend = None
        if name != "base":
            values = view_to_addend(adapter, view, size).values * plan.strength
            addend = values.roll(-1, 0) if name == "other_depth" else values
        latent = sample_image(base, scenes.captions, plan, seed, addend)
        seconds[name] = time.process_time() - started
        decoded = base.autoencoder.decode(latent)
        images[name] = ((decoded.movedim(1, -1) + 1) / 2).clamp(0, 1)
    return images, seconds


@torch.no_grad()
def sample_image(
    base: LatentDiffusion, prompts: list[str], plan: AdapterPlan, seed: int, addend: Tensor | None
) -> Tensor:
    """Latents of the prompts by DDIM and CFG; until `end` the network reads z_t + F in both branches."""
    prompt = base.prompts.encode([*prompts, *[""] * len(prompts)])
    last = base.backbone.steps * (1 - plan.end)

    def predict(latents: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        x = latents["image"]
        x = x if addend is None or float(t) < last else x + addend
        wanted, empty = base.backbone.predict(torch.cat((x, x)), t, prompt).chunk(2)
        return {"image": empty + plan.guidance * (wanted - empty)}

    side = tiny.SIZE // tiny.VAE.stride
    noise = draw_noise(seed, (len(prompts), base.backbone.channels, side, side))
    scheduler = make_scheduler(base.backbone)
    return sample_streams(predict, noise, scheduler, streams=("image",), steps=plan.steps)["image"]


def judge_images(
    image: Tensor, name: str, scenes: HeldOut, judges: tuple[Scorer, Predictor],
    counts: dict[str, list[int]], maps: dict[str, list[float]],
) -> None:  # fmt: skip
    """Append what the judges read in one variant's images."""
    scorer, predictor = judges
    for text, judgement in zip(scenes.captions, scorer.judge(image, scenes.captions), strict=True):
        objects = len(parse_caption(text).phrases)
        counts["objects"] += [int(fact.holds) for fact in judgement.facts[:objects]]
        counts["relation"] += [int(fact.holds) for fact in judgement.facts[objects:]]
    truth = exact_maps(scenes.frames)
    if name == "other_depth":
        truth = SceneMaps(*(getattr(truth, key).roll(-1, 0) for key in vars(truth)))
    figures = compare_maps(predictor.read(image), truth)
    for figure in MAPS:
        maps.setdefault(figure, []).extend(figures[figure].tolist())
