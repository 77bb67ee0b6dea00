"""Evaluation of VGGT on held-out scenes of the procedural world, seen by two to four cameras."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.evaluation.metrics import abs_rel, delta
from ..core.evaluation.pose_metrics import pair_errors, score_poses
from ..core.geometry.align import align_scale
from ..core.geometry.camera import fov_from_intrinsics, pad_pose
from ..vggt.pipeline import VggtPipeline
from ..world.multiview import MultiView, sample_views
from .held_out import HELD_OUT_SEED

VIEWS = (2, 3, 4)
LENS_JITTER = 0.2  # of the held-out views, as of the views that the tiny network was trained on


def evaluate_vggt(
    weights: str | Path | None = None, *, count: int = 64, size: int = 0
) -> dict[str, float]:
    """Figures by name, over `count` test scenes for each number of views.

    absrel, delta1: of depth aligned by one scale (median) for each view; scene_absrel: by one scale for all
    views of a scene. rotation, translation: median error in degrees of the relative poses of all pairs of
    views; auc5, auc10, auc30 in percent. fov: mean error of the horizontal field of view in degrees.
    `size` in pixels is that of the renders; 0 is the network's own.
    """
    if count < 1:
        raise ValueError(f"Expected at least 1 scene, got {count}. Set --n.")
    started = time.perf_counter()
    pipeline = VggtPipeline.from_file(weights)
    side, figures = size or pipeline.config.img_size, {}
    pairs: list[tuple[Tensor, Tensor]] = []
    with tqdm(total=count * len(VIEWS), desc="evaluating", unit="scene") as bar:
        for views in VIEWS:
            rows = []
            for start in range(count):
                (scene,) = sample_views(
                    HELD_OUT_SEED, 1, views, (side, side), split="test", start=start, lens_jitter=LENS_JITTER
                )
                depth, poses = measure_scene(pipeline, scene)
                rows.append(depth)
                pairs.append(poses)
                bar.update()
            means = {name: sum(row[name] for row in rows) / count for name in rows[0]}
            figures |= {f"{views}_views.{name}": value for name, value in means.items()}
            rotation, translation = (torch.cat(errors) for errors in zip(*pairs[-count:]))
            figures |= {f"{views}_views.{k}": v for k, v in score_poses(rotation, translation).items()}
    rotation, translation = (torch.cat(errors) for errors in zip(*pairs))
    figures |= score_poses(rotation, translation)
    figures["absrel"] = sum(figures[f"{views}_views.absrel"] for views in VIEWS) / len(VIEWS)
    figures |= {"scenes": count, "seconds": round(time.perf_counter() - started, 1)}
    return {name: round(float(value), 4) for name, value in figures.items()}


def measure_scene(
    pipeline: VggtPipeline, scene: MultiView
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    """Depth figures of one scene, and the pairwise rotation and translation errors."""
    view = pipeline(scene.image).view
    mask = scene.mask & view.mask
    aligned = align_scale(view.depth, scene.depth_metric, mask).apply(view.depth)
    whole = [maps.flatten(0, 1)[None] for maps in (view.depth, scene.depth_metric, mask)]
    by_scene = align_scale(*whole).apply(whole[0])
    lenses = (view.intrinsics, scene.intrinsics)
    fov = [fov_from_intrinsics(lens, *view.depth.shape[:0:-1])[0] for lens in lenses]
    figures = {
        "absrel": abs_rel(aligned, scene.depth_metric, mask),
        "delta1": delta(aligned, scene.depth_metric, mask),
        "scene_absrel": abs_rel(by_scene, whole[1], whole[2]),
        "fov": float((fov[0] - fov[1]).abs().mean()),
    }
    return figures, pair_errors(view.world_to_cam, pad_pose(scene.world_to_cam))
