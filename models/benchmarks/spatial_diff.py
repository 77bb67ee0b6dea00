"""Evaluation of SpatialDiff's tiny system on held-out moves of the world: the ladder from the editor alone to
geometry tokens with latent depth supervision, judged by the edit check and by the world's scorer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor
from tqdm import tqdm

from ..core.evaluation.edit_change import grow_mask
from ..core.evaluation.edit_check import check_edit
from ..core.evaluation.edit_object import mask_center
from ..core.evaluation.edit_verdict import EditRequest
from ..core.geometry.view import View
from ..core.weights.registry import hash_file
from ..spatial_diff.config import DEFAULTS
from ..spatial_diff.editor_files import EDITOR_FILE, LORA_FILE
from ..spatial_diff.pipeline import Parts, SpatialDiffPipeline
from ..spatial_diff.weights import TINY_CONNECTOR
from ..world.edits import Edit
from ..world.judges.scorer import Scorer
from ..world.moves import STRATA, sample_moves
from ..world.render import Frames, render
from .intervals import CONFIDENCE, proportion_interval, significant_sign
from .work_file import WorkFile

MOVES_SEED = 2026  # of the test split
SIZE = 128  # pixels a side, at which the tiny editor was trained
FIGURES = ("hit_rate", "position_error", "ghost", "identity", "psnr_outside")
RATES = ("hit_rate", "ghost")
RUNGS = ("base", "lora", "tokens", "eds", "lds")
BASELINES = ("base", "lora")  # with which the rungs above them are compared
CEILING = "codec"  # the exact target through the codec: what no editor of these latents can exceed
_UNTOUCHED = 0.02  # of the colors' range: a pixel that differs less between both renders is outside the edit
_NEAR, _SHARE = 0.03, 0.3  # of the width, and of the move: the distance to the exact place that still counts
_DIFFERS, _LEAST_LEFT = 0.1, 12  # of the colors' range; pixels: what can show whether an object left
_MOST_PSNR = 60.0  # dB, of equal pixels


@dataclass(frozen=True)
class LadderPlan:
    """What is evaluated. `runs` has a folder of a training run for each rung above the base."""

    count: int = 500
    seeds: int = 3
    steps: int | None = None
    guidance: float | None = None
    batch: int = 16
    seed: int = MOVES_SEED


@dataclass(frozen=True)
class MoveCase:
    """One held-out edit with its renders."""

    edit: Edit
    before: Frames
    target: Frames


def evaluate_spatial_diff(
    plan: LadderPlan,
    *,
    work: Path,
    weights: Path | None = None,
    runs: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Figures by name. `weights`: another folder of the tiny system's files than the shipped ones. `work`: a
    folder that gets the rows of each batch as they are measured; a rerun continues from them."""
    if plan.count < len(STRATA):
        raise ValueError(
            f"Expected at least {len(STRATA)} edits, one of each stratum, got {plan.count}. Set --n."
        )
    rungs = find_rungs(weights, runs)
    cases, scorer = list_cases(plan), Scorer.from_pretrained()
    measured = {CEILING: [measure_ceiling(cases, scorer, device)]} | {name: [] for name in rungs}
    files = {name: WorkFile(work / f"{name}.jsonl", state_rung(plan, parts)) for name, parts in rungs.items()}
    done = {name: file.read() for name, file in files.items()}
    pipelines = {name: SpatialDiffPipeline.from_parts(parts, device=device) for name, parts in rungs.items()}
    for seed in range(plan.seeds):  # the outer loop, so that what is interrupted compares all rungs
        for name, pipeline in pipelines.items():
            rows = measure_seed(pipeline, cases, plan, seed, scorer, files[name], done[name])
            measured[name].append(rows)
    figures: dict[str, Any] = {"edits": plan.count, "seeds": plan.seeds, "moves_seed": plan.seed}
    figures["steps"] = plan.steps or DEFAULTS.steps
    figures["guidance"] = DEFAULTS.guidance if plan.guidance is None else plan.guidance
    strata = [case.edit.parameters["stratum"] for case in cases]
    for name, rows in measured.items():
        figures |= summarize_rung(f"ladder.{name}", rows, strata)
    for baseline in BASELINES:
        for name in RUNGS[RUNGS.index(baseline) + 1 :]:
            if name in measured and baseline in measured:
                others = measured[baseline]
                figures |= compare_rungs(f"ladder.{name}", measured[name], baseline, others)
    figures["not evaluated"] = [name for name in RUNGS if name not in rungs]
    return figures


def find_rungs(weights: Path | None, runs: Path | None) -> dict[str, Parts]:
    """The files of each rung that exist. The full system is the shipped one, or that of `weights`."""
    home = weights or EDITOR_FILE.parent
    shipped = Parts.of_folder(home)
    found = {"base": Parts(shipped.editor, shipped.text)}
    for name in RUNGS[1:]:
        folder = runs / name if runs else None
        if folder is not None and (folder / LORA_FILE.name).is_file():
            connector = folder / TINY_CONNECTOR.name
            found[name] = Parts(
                shipped.editor,
                shipped.text,
                folder / LORA_FILE.name,
                connector if connector.is_file() else None,
            )
    if "lds" not in found and shipped.lora and shipped.connector:
        found["lds"] = shipped
    return found


def list_cases(plan: LadderPlan) -> list[MoveCase]:
    """Held-out edits, equally many of each stratum, rendered."""
    cases = []
    for index, stratum in enumerate(STRATA):
        share = (plan.count + len(STRATA) - 1 - index) // len(STRATA)
        for edit in tqdm(
            sample_moves(plan.seed, share, split="test", stratum=stratum),
            desc=f"render {stratum}",
            disable=None,
        ):
            before, target = (render([scene], SIZE, SIZE) for scene in (edit.source, edit.target))
            cases.append(MoveCase(edit, before, target))
    return cases


def state_rung(plan: LadderPlan, parts: Parts) -> dict[str, Any]:
    """What determines the rows of a rung. Seeds do not: more of them continue."""
    paths = {part.name: getattr(parts, part.name) for part in fields(parts)}
    hashes = {name: hash_file(path) for name, path in paths.items() if path is not None}
    settings = {name: value for name, value in asdict(plan).items() if name != "seeds"}
    return {"benchmark": "spatial_diff", **settings, "files": hashes}


def measure_ceiling(cases: Sequence[MoveCase], scorer: Scorer, device: str) -> list[dict[str, float]]:
    """The figures of the exact targets through the codec."""
    from ..tiny.weights import load_codec

    codec, rows = load_codec(device=device).train(False), []
    for case in cases:
        image = case.target.image.movedim(-1, 1).to(device) * 2 - 1
        with torch.no_grad():
            decoded = (codec.decode(codec.encode(image)) * 0.5 + 0.5).clamp(0, 1).movedim(1, -1).cpu()
        rows.append(judge_result(case, decoded[0], scorer))
    return rows


def measure_seed(
    pipeline: SpatialDiffPipeline,
    cases: Sequence[MoveCase],
    plan: LadderPlan,
    seed: int,
    scorer: Scorer,
    file: WorkFile,
    done: Mapping[str, Any],
) -> list[dict[str, float]]:
    """The figures of every edit, sampled with one seed; `done` are batches of `file` by name."""
    rows = []
    title = f"{file.path.stem}, seed {seed}"
    for start in tqdm(range(0, len(cases), plan.batch), desc=title, disable=None):
        name, some = f"seed {seed}, edit {start}", cases[start : start + plan.batch]
        if name in done:
            rows += done[name]["rows"]
            continue
        result = pipeline(
            [case.edit.instruction for case in some], image=torch.cat([case.before.image for case in some]),
            steps=plan.steps, guidance=plan.guidance, seed=1_000_003 * seed + start,
        )  # fmt: skip
        found = [judge_result(case, image, scorer) for case, image in zip(some, result.image, strict=True)]
        file.add(name, {"rows": found})
        rows += found
    return rows


def judge_result(case: MoveCase, image: Tensor, scorer: Scorer) -> dict[str, float]:
    """FIGURES of one edited image (h, w, 3) against the exact edit; NaN where there is nothing to measure.

    hit_rate: "Check Edit" finds the object within `reach` of its exact center, and the scorer sees an object
    of its color there. position_error: between the centers, of the image's width. ghost: see
    `is_ghost`. identity: intersection of the object's colors before and after. psnr_outside: against the
    exact target, of the pixels that the edit does not touch.
    """
    index = case.edit.object
    old, new = (frames.segmentation[0] == index + 1 for frames in (case.before, case.target))
    view = View.from_depth(case.before.depth, units="metric", intrinsics=case.before.intrinsics)
    request = EditRequest("move object", new)
    report = check_edit(
        case.before.image[0], image, view, request, object_before=old, static_camera=True
    )
    error = report.figures.get("target_distance_of_width", math.nan)
    return {
        "hit_rate": float(error <= reach(old, new) and sees_object(case, image, new, scorer)),
        "position_error": error,
        "ghost": is_ghost(case, image, old & ~grow_mask(new, 1)),
        "identity": report.figures.get("object_consistency", math.nan),
        "psnr_outside": psnr_outside(case, image, old | new),
    }


def reach(old: Tensor, new: Tensor) -> float:
    """How far from its exact center an object still counts as there, of the image's width.

    A share of the move, but never so far that the unmoved object would count.
    """
    (x, y), (to_x, to_y) = (mask_center(mask) for mask in (old, new))
    move = math.hypot(to_x - x, to_y - y) / old.shape[1]
    return min(max(_NEAR, _SHARE * move), move / 2)


def is_ghost(case: MoveCase, image: Tensor, left: Tensor) -> float:
    """1 if most pixels that the object `left` (h, w) still look as before rather than as the exact target.

    NaN if fewer than _LEAST_LEFT of them differ between both.
    """
    before, target = case.before.image[0], case.target.image[0]
    left = left & ((before - target).abs().amax(-1) > _DIFFERS)
    if int(left.sum()) < _LEAST_LEFT:
        return math.nan
    stays, goes = ((image - each).square().sum(-1)[left] for each in (before, target))
    return float((stays < goes).float().mean() > 0.5)


def sees_object(case: MoveCase, image: Tensor, new: Tensor, scorer: Scorer) -> bool:
    """Whether the scorer sees an object of the moved one's color, centered in the target's rectangle.

    Not its shape, which the scorer mistakes where an object is small or occluded.
    """
    rows, columns = (new.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    height, width = new.shape
    for item in scorer.read(image[None])[0]:
        x, y = (item.x + 1) * width / 2, (item.y + 1) * height / 2
        inside = columns[0] - 2 <= x <= columns[-1] + 3 and rows[0] - 2 <= y <= rows[-1] + 3
        if inside and item.color == case.edit.target.objects[case.edit.object].color:
            return True
    return False


def psnr_outside(case: MoveCase, image: Tensor, touched: Tensor) -> float:
    """PSNR in dB over the pixels that are equal in both renders, away from the object's places."""
    same = (case.before.image[0] - case.target.image[0]).abs().amax(-1) < _UNTOUCHED
    outside = same & ~grow_mask(touched, 2)
    if not bool(outside.any()):
        return math.nan
    error = (image - case.target.image[0]).square().mean(-1)[outside].mean()
    return min(_MOST_PSNR, -10 * math.log10(max(float(error), 1e-9)))


def summarize_rung(
    name: str, rows: Sequence[Sequence[Mapping[str, float]]], strata: Sequence[str]
) -> dict[str, Any]:
    """Means over edits and seeds with intervals, over all edits and by stratum."""
    figures: dict[str, Any] = {}
    for figure in FIGURES:
        values = average_seeds(rows, figure)
        describe = describe_rate if figure in RATES else describe_values
        figures |= describe(f"{name}.{figure}", values)
        for stratum in STRATA:
            some = [value for value, own in zip(values, strata, strict=True) if own == stratum]
            figures |= describe(f"{name}.{stratum}.{figure}", some)
    return figures


def average_seeds(rows: Sequence[Sequence[Mapping[str, float]]], figure: str) -> list[float]:
    """The mean over seeds for each edit, of those measured: edits are independent, seeds are not."""
    values = []
    for edit in zip(*rows, strict=True):
        known = [row[figure] for row in edit if not math.isnan(row[figure])]
        values.append(statistics.fmean(known) if known else math.nan)
    return values


def describe_values(name: str, values: Sequence[float]) -> dict[str, Any]:
    """The mean of the measured values, and its interval over edits by Student's t."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return {name: None, f"{name}.interval": None}
    mean = statistics.fmean(known)
    if len(known) < 2:
        return {name: round(mean, 5), f"{name}.interval": None}
    error = statistics.stdev(known) / len(known) ** 0.5
    half_width = float(student.ppf((1 + CONFIDENCE) / 2, len(known) - 1)) * error
    return {
        name: round(mean, 5),
        f"{name}.interval": [round(mean - half_width, 5), round(mean + half_width, 5)],
    }


def describe_rate(name: str, values: Sequence[float]) -> dict[str, Any]:
    """The mean of rates of edits, and Wilson's interval as if each edit were one trial: seeds add none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return {name: None, f"{name}.interval": None}
    low, high = proportion_interval(sum(known), len(known))
    return {name: round(statistics.fmean(known), 5), f"{name}.interval": [round(low, 5), round(high, 5)]}


def compare_rungs(name: str, rows, baseline: str, others) -> dict[str, Any]:
    """Whether the hit rate and the ghosts of a rung differ from those of `baseline`, whose rows are `others`,
    edit by edit: 1, -1, or 0 for neither."""
    figures = {}
    for figure in RATES:
        pairs = zip(average_seeds(rows, figure), average_seeds(others, figure), strict=True)
        differences = [a - b for a, b in pairs if not math.isnan(a - b)]
        figures[f"{name}.{figure}.against_{baseline}"] = significant_sign(differences)
    return figures
