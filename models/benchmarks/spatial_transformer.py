"""Evaluation of the tiny spatial transformer: is depth inferred from captions that of their scenes?

Held-out scenes are rendered, and depth is inferred from captions of each; every depth is scaled to the
rendering by its median. Beside it stand

    median          the median scene: at each pixel the median depth of training scenes, whatever the caption
    median_floor    that of the training scenes with the scene's floor, which half of the captions leave open
    other_caption   depth inferred from the next scene's caption
    rendered        the rendering itself at the resolution of the transformer's queries: an oracle

and of each

    absrel, delta1  of the depth
    order           share of the pairs of objects, clearly one behind the other, whose median depths are in
                    that order, where the rendering has the objects
    order_stated    the same, of the pairs whose order the caption states

with the mean over scenes and its bootstrap interval. `<name>.against_median` is the mean difference to the
median scene in the same captions, with its interval.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..core.evaluation.metrics import abs_rel, delta
from ..core.geometry.align import align_scale
from ..spatial_fusion.language import fill_language, read_language, tokenize_words
from ..spatial_fusion.mllm import read_semantic_state
from ..spatial_fusion.network import DepthPlan, SpatialTransformer, plan_depth
from ..spatial_fusion.weights import load_spatial_transformer
from ..world.captions import caption, parse_caption, true_relations
from ..world.render import render_geometry
from ..world.scene import Scene, sample_scenes
from .held_out import HELD_OUT_SEED
from .intervals import bootstrap_interval

FIGURES = ("absrel", "delta1", "order", "order_stated")
BEHIND = {"behind": 1, "in front of": -1}  # sign of the first object's depth minus the second's
Infer = Callable[[Sequence[str]], Tensor]  # captions -> depth (b, h, w)


@dataclass(frozen=True)
class InferencePlan:
    """Which scenes are compared."""

    count: int = 500
    seeds: int = 3  # captions of each scene
    training: int = 1000  # scenes of the median scene, of the training split
    batch: int = 32

    def __post_init__(self) -> None:
        if self.count < 2 or min(self.seeds, self.training, self.batch) < 1:
            raise ValueError(
                f"Expected at least 2 scenes and 1 caption, training scene and scene a batch, got {self}. "
                "Correct them."
            )


@dataclass(frozen=True)
class MedianScene:
    """The depth at each pixel of a median training scene, in units of its mean, whole and by floor."""

    whole: Tensor  # (h, w)
    by_floor: Mapping[str, Tensor]

    def of(self, scene: Scene) -> Tensor:
        """That of the scene's floor, or the whole one for a floor that no training scene had."""
        return self.by_floor.get(scene.surroundings.floor, self.whole)


def evaluate_spatial_transformer(
    weights: str | Path, language: str | Path, *, plan: InferencePlan
) -> dict[str, Any]:
    """variants.<name>.<figure> and the settings, of the files of both trainings."""
    network = load_spatial_transformer(weights)
    size = plan_depth(network.config, (1, 1))
    figures = compare_depths(make_infer(network, language, size), size, plan)
    return {"variants": figures, "settings": vars(plan)}


def make_infer(network: SpatialTransformer, language: str | Path, size: DepthPlan) -> Infer:
    """Captions to depth, through the language model of a file."""
    decoder = fill_language(*read_language(language))

    @torch.no_grad()
    def infer(captions: Sequence[str]) -> Tensor:
        rows = tokenize_words(captions)
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        state = read_semantic_state(decoder, ids, mask, network.config)
        return network(state, size.grid, size.size).depth

    return infer


def compare_depths(infer: Infer, size: DepthPlan, plan: InferencePlan) -> dict[str, Any]:
    """variants.<name>.<figure> of depths that `infer` gives at `size.size`."""
    median = find_median_scene(plan, size.size)
    rows: dict[str, dict[str, list[float]]] = {}
    with tqdm(total=plan.count, desc="evaluating", unit="scene", disable=None) as bar:
        for start in range(0, plan.count, plan.batch):
            count = min(plan.batch, plan.count - start)
            scenes = sample_scenes(HELD_OUT_SEED, count, split="test", start=start)
            frames = render_geometry(scenes, *size.size)
            texts = [draw_scene_captions(scene, start + i, plan.seeds) for i, scene in enumerate(scenes)]
            for seed in range(plan.seeds):
                own = [row[seed] for row in texts]
                inferred = infer(own)
                depths = {
                    "inferred": inferred,
                    "other_caption": inferred.roll(1, 0),
                    "median": median.whole.expand_as(inferred),
                    "median_floor": torch.stack([median.of(scene) for scene in scenes]),
                    "rendered": coarsen(frames[0], size.grid),
                }
                for name, depth in depths.items():
                    kept = rows.setdefault(name, {figure: [] for figure in FIGURES})
                    for i, scene in enumerate(scenes):
                        found = score_scene(depth[i], frames[0][i], frames[1][i], scene, own[i])
                        for figure, value in found.items():
                            kept[figure].append(value)
            bar.update(count)
    return {name: describe_depths(kept, rows["median"], plan) for name, kept in rows.items()}


def draw_scene_captions(scene: Scene, index: int, count: int) -> list[str]:
    """`count` captions of a held-out scene, the same ones at every call."""
    rng = random.Random(f"spatial transformer/{index}")
    return [caption(scene, rng) for _ in range(count)]


def find_median_scene(plan: InferencePlan, size: tuple[int, int]) -> MedianScene:
    """Of training scenes and their mirror images; a pixel that is sky in all of them has a depth of 1."""
    scenes = sample_scenes(HELD_OUT_SEED, plan.training, split="train")
    depth = render_geometry(scenes, *size)[0]
    depth = torch.where(depth.isfinite(), depth, torch.nan)
    unit = depth / depth.nanmean(dim=(1, 2), keepdim=True)

    def median(rows: Tensor) -> Tensor:
        return torch.cat((rows, rows.flip(-1))).nanmedian(dim=0).values.nan_to_num(nan=1.0)

    floors = [scene.surroundings.floor for scene in scenes]
    groups = {floor: torch.tensor([found == floor for found in floors]) for floor in set(floors)}
    return MedianScene(median(unit), {floor: median(unit[rows]) for floor, rows in groups.items()})


def coarsen(depth: Tensor, grid: tuple[int, int]) -> Tensor:
    """Depth (b, h, w), infinite in the sky, as means of log depth over cells of `grid`, bilinear between."""
    known = depth.isfinite()
    planes = torch.stack((torch.where(known, depth, 1.0).log() * known, known.float()), dim=1)
    cells = F.adaptive_avg_pool2d(planes, grid)
    total, cover = F.interpolate(cells, depth.shape[1:], mode="bilinear").unbind(1)
    return (total / cover.clamp(min=1e-6)).exp()


def score_scene(
    depth: Tensor, truth: Tensor, segmentation: Tensor, scene: Scene, text: str
) -> dict[str, float]:
    """FIGURES of one depth map (h, w) against a rendering; NaN for an order of which there is no pair."""
    mask = truth.isfinite()
    exact = torch.where(mask, truth, 1.0)[None]
    aligned = align_scale(depth[None], exact, mask[None]).apply(depth[None])
    stated = state_pairs(scene, text)
    right: dict[str, list[bool]] = {"order": [], "order_stated": []}
    for pair, sign in clear_pairs(scene):
        first, second = (depth[segmentation == i + 1] for i in pair)
        if not first.numel() or not second.numel():
            continue
        holds = bool((first.median() - second.median()) * sign > 0)
        right["order"].append(holds)
        if frozenset(pair) in stated:
            right["order_stated"].append(holds)
    orders = {name: statistics.fmean(found) if found else math.nan for name, found in right.items()}
    return {
        "absrel": abs_rel(aligned, exact, mask[None]), "delta1": delta(aligned, exact, mask[None]), **orders,
    }  # fmt: skip


def clear_pairs(scene: Scene) -> list[tuple[tuple[int, int], int]]:
    """Pairs of objects that are clearly one behind the other, with the sign of the first's depth less the
    second's."""
    found = []
    for first in range(len(scene.objects)):
        for second in range(first + 1, len(scene.objects)):
            kinds = [kind for kind in true_relations(scene, first, second) if kind in BEHIND]
            found += [((first, second), BEHIND[kind]) for kind in kinds]
    return found


def state_pairs(scene: Scene, text: str) -> set[frozenset[int]]:
    """Pairs of the scene's objects whose order in depth a caption states, one after the other in a row."""
    described = parse_caption(text)
    names = [item.name for item in scene.objects]
    own = [names.index(f"{phrase.color} {phrase.shape}") for phrase in described.phrases]
    return {frozenset((own[r.first], own[r.second])) for r in described.relations if r.kind in BEHIND}


def describe_depths(
    kept: Mapping[str, list[float]], median: Mapping[str, list[float]], plan: InferencePlan
) -> dict[str, Any]:
    """Mean over scenes, its interval, and both of the difference to the median scene, of each figure.

    A scene counts once, with the mean of its captions.
    """
    figures: dict[str, Any] = {}
    for name in FIGURES:
        own = by_scene(kept[name], plan)
        less = by_scene([a - b for a, b in zip(kept[name], median[name], strict=True)], plan)
        figures[name] = summarize_scenes(own)
        figures[f"{name}.against_median"] = summarize_scenes(less)
    return figures


def by_scene(values: Sequence[float], plan: InferencePlan) -> list[float]:
    """The mean of each scene's captions, of values in the order in which they were measured; no NaN."""
    means, start = [], 0
    for first in range(0, plan.count, plan.batch):
        count = min(plan.batch, plan.count - first)
        batch = torch.tensor(values[start : start + count * plan.seeds], dtype=torch.float64)
        start += count * plan.seeds
        means += batch.view(plan.seeds, count).nanmean(dim=0).tolist()
    return [value for value in means if not math.isnan(value)]


def summarize_scenes(values: Sequence[float]) -> dict[str, Any]:
    """Mean, interval and number of scenes; None for fewer than two of them."""
    if len(values) < 2:
        return {"mean": None, "interval": None, "of": len(values)}
    return {
        "mean": statistics.fmean(values), "interval": list(bootstrap_interval(values)), "of": len(values),
    }  # fmt: skip
