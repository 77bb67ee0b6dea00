"""A pose benchmark: every scene of a folder through a predictor, all pairs of its frames compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.evaluation.pose_metrics import THRESHOLDS, pair_errors, score_poses
from .pose_folders import PoseFolder
from .predictors import PosePredictor
from .published import published_rows
from .report import table_lines
from .work_file import WorkFile


def run_pose_benchmark(
    folder: PoseFolder,
    predictor: PosePredictor,
    work: Path,
    *,
    frames: int,
    seed: int,
    limit: int | None = None,
    progress=iter,
) -> dict[str, Any]:
    """AUC@5, @10 and @30 over the pairs of all scenes, the first `limit` of them; `work` as for depth."""
    names = folder.names[:limit]
    settings = {
        "benchmark": "pose",
        "dataset": folder.dataset,
        "model": predictor.name,
        "settings": dict(predictor.settings),
        "frames": frames,
        "seed": seed,
    }
    file = WorkFile(work, settings)
    done = file.read()
    for name in progress([name for name in names if name not in done]):
        scene = folder.read(name)
        began = time.perf_counter()
        poses = predictor(scene.images)
        seconds = time.perf_counter() - began
        rotation, translation = pair_errors(poses.double().cpu(), scene.world_to_cam)
        errors = {"rotation": rotation.tolist(), "translation": translation.tolist()}
        done[name] = {"errors": errors, "seconds": round(seconds, 3), "frames": len(scene.images)}
        file.add(name, done[name])
    rows = [done[name] for name in names]
    pooled = [
        torch.tensor([error for row in rows for error in row["errors"][kind]], dtype=torch.float64)
        for kind in ("rotation", "translation")
    ]
    seconds = round(statistics.fmean(row["seconds"] for row in rows), 3)
    counts = {"scenes": len(rows), "pairs": len(pooled[0]), "seconds_per_scene": seconds}
    return settings | counts | {"figures": score_poses(*pooled)}


def pose_table(result: Mapping[str, Any]) -> list[str]:
    """Markdown: our row, then the published ones of this dataset."""
    head = ["model", *(f"AUC@{t}" for t in THRESHOLDS), "rotation", "translation", "source"]
    figures = result["figures"]
    ours = [f"{figures[f'auc{t}']:.2f}" for t in THRESHOLDS]
    ours += [f"{figures[name]:.2f}" for name in ("rotation", "translation")]
    rows = [[result["model"], *ours, f"this run, {result['scenes']} scenes, {result['pairs']} pairs"]]
    for row in published_rows("pose", result["dataset"]):
        rows.append([row.model, *row.figures, "-", "-", row.source])
    lines = [
        f"{result['dataset']}, up to {result['frames']} frames of a scene, {result['seconds_per_scene']} s a "
        "scene; rotation and translation: median degrees",
        "",
    ]
    return lines + table_lines(head, rows)
