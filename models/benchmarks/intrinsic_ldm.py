"""Evaluation of the tiny I-LDM on held-out captions of the procedural world: the figures of docs/evidence.md.

Each method generates the same captions from the same noise, a batch at a time and in turns, so that their
times are comparable. The figures of each batch go into a file of the work folder at once, from which an
interrupted evaluation continues. A file's name has a hash of everything that determines its content: other
settings or weights have other files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.export.files import write_file
from ..core.text_files import read_json_object
from ..core.weights.files import read_tensors, write_tensors
from ..intrinsic_ldm import tiny
from ..intrinsic_ldm.backbones import import_diffusers
from ..intrinsic_ldm.config import GUIDANCE, PRECISIONS, STEPS
from ..intrinsic_ldm.layers import Reading, middle_layers
from ..intrinsic_ldm.pipeline import IntrinsicPipeline, Result
from ..intrinsic_ldm.schedules import Constant, Drop, Gaussian, Schedule
from ..world.judges import predictor, scorer
from ..world.judges.predictor_evaluation import predictor_accuracy
from ..world.judges.scorer_evaluation import scorer_accuracy
from ..world.judges.scorer_features import LAYERS, frechet_distance
from ..world.render import render
from .held_out import hold_out
from .intervals import summarize_seeds
from .intrinsic_ldm_judge import Judge, code_frames

READING: Reading = "blocks"  # the node's default way of counting layers
SEED_STRIDE = 1_000_003  # between the noise seeds of two sampling seeds; more than there are captions
RENDERED, OTHERS = "rendered", "rendered_others"
MOST_JUDGED = 256  # scenes on which the judges themselves are evaluated

Figures = dict[str, Tensor]  # figures (n,) by name, and features (n, c) by the names of LAYERS, of n images
Measure = Callable[[int, int, int], Figures]  # of (first image, count, seed)
Batch = tuple[int | None, int, int]  # (seed, or None for renderings, first image, count)


@dataclass(frozen=True)
class Plan:
    """The settings that all methods share."""

    count: int = 512  # captions
    seeds: int = 3
    steps: int = STEPS
    guidance: float = GUIDANCE
    batch: int = 16
    size: int = tiny.SIZE
    precision: str = PRECISIONS[0]  # dtype of the generating networks; the judges use float32

    def __post_init__(self) -> None:
        if self.count < 2 or min(self.seeds, self.steps, self.batch) < 1:
            raise ValueError(
                "Expected at least 2 captions, and 1 seed, step and image per batch, "
                f"got {self}. Increase them."
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"Expected precision {' or '.join(PRECISIONS)}, got {self.precision!r}. Choose one of these."
            )

    def batches(self, count: int) -> Iterator[tuple[int, int]]:
        """(first image, count) of each batch of `count` images."""
        return ((start, min(self.batch, count - start)) for start in range(0, count, self.batch))


@dataclass(frozen=True)
class Files:
    """Weights: the system's, the LoRA trained without the image domain (optional), and the judges'."""

    base: Path = tiny.BASE_FILE
    vae: Path = tiny.VAE_FILE
    lora: Path = tiny.LORA_FILE
    ablation: Path | None = None
    scorer: Path = scorer.WEIGHTS
    predictor: Path = predictor.WEIGHTS

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file; OSError for a missing one."""
        paths = {name: path for name, path in vars(self).items() if path is not None}
        return {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items()}


@dataclass(frozen=True)
class Method:
    """One way to generate images; `settings` determine them completely."""

    name: str
    settings: Mapping[str, Any]
    make: Callable[..., Result]  # (captions, seed=)


class Evaluation:
    """Judges and methods, and the work folder with their results."""

    def __init__(self, plan: Plan, files: Files, work: Path, device: str):
        self.plan, self.work, self.digests = plan, work, files.digests()
        self.judge = Judge(
            scorer.Scorer.from_pretrained(files.scorer), predictor.Predictor.from_pretrained(files.predictor)
        )
        self.methods = make_methods(plan, files, self.digests, device)

    def cached(
        self, name: str, settings: Mapping[str, Any], seed: int, start: int, count: int, measure: Measure
    ) -> Figures:
        """`measure(start, count, seed)`, cached in the work folder."""
        judges = {judge: self.digests[judge] for judge in ("scorer", "predictor")}
        number = hash_settings(settings, judges, self.plan.batch)
        path = self.work / f"{name}-{number}-seed{seed}-{start:05d}-{count}.safetensors"
        if not path.is_file():
            write_tensors(path, measure(start, count, seed), {}, kind="part of an evaluation of I-LDM")
        return read_tensors(path, finite=False)  # a figure is NaN where there is nothing to measure

    def rendered(self, start: int, count: int) -> dict[str, Figures]:
        """Figures of the captions' own scenes with their exact maps, and of as many other scenes.

        The others give the Fréchet distance of two sets of renderings, as a baseline.
        """
        measure, settings = partial(measure_rendered, self.plan, self.judge), {"size": self.plan.size}
        firsts = {RENDERED: 0, OTHERS: self.plan.count}
        return {
            name: self.cached(name, settings, 0, first + start, count, measure)
            for name, first in firsts.items()
        }

    def generated(self, seed: int, start: int, count: int) -> dict[str, Figures]:
        """Figures of every method's images, one method after the other."""
        figures = {}
        for method in self.methods:
            generate = partial(measure, method, self.judge)
            figures[method.name] = self.cached(method.name, method.settings, seed, start, count, generate)
        return figures

    def measure(self, batch: Batch) -> dict[str, Figures]:
        seed, start, count = batch
        return self.rendered(start, count) if seed is None else self.generated(seed, start, count)


def evaluate_intrinsic_ldm(
    plan: Plan | None = None,
    files: Files | None = None,
    *,
    work: str | Path,
    device: str = "cpu",
    processes: int = 1,
) -> dict[str, Any]:
    """The report: settings, weight hashes, figures by method and of renderings, accuracy of the judges.

    A figure has its mean, standard error and the value of each seed. `work` is the folder of partial results,
    which `processes` share.
    """
    if processes < 1:
        raise ValueError(f"Expected at least 1 process, got {processes}. Set --processes.")
    plan, files, work = plan or Plan(), files or Files(), Path(work)
    batches: list[Batch] = [
        (seed, *batch) for seed in (None, *range(plan.seeds)) for batch in plan.batches(plan.count)
    ]
    by_method: dict[str, dict[int | None, list[Figures]]] = {}
    with tqdm(total=plan.count * (1 + plan.seeds), desc="evaluating", unit="image") as bar:
        if processes > 1:
            run_processes(plan, files, work, device, batches, processes, bar)
        evaluation = Evaluation(plan, files, work, device)
        for batch in batches:
            for name, figures in evaluation.measure(batch).items():
                by_method.setdefault(name, {}).setdefault(batch[0], []).append(figures)
            bar.update(batch[2] if processes <= 1 else 0)
    joined = {name: [join(each) for each in seeds.values()] for name, seeds in by_method.items()}
    (reference,), (others,) = joined[RENDERED], joined[OTHERS]
    return {
        "settings": asdict(plan) | describe_machine(device) | {"processes": processes},
        "weights": evaluation.digests,
        "methods": {
            method.name: {
                "settings": dict(method.settings),
                "figures": summarize(joined[method.name], reference),
            }
            for method in evaluation.methods
        },
        RENDERED: summarize([reference], others),
        "judges": measure_judges(evaluation.judge, plan, evaluation.digests, work),
    }


def run_processes(
    plan: Plan, files: Files, work: Path, device: str, batches: list[Batch], processes: int, bar: tqdm
) -> None:
    """Measure every batch into the work folder. ChildProcessError if a process dies."""
    settings = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(processes, get_context("spawn"), **settings) as pool:
        jobs = {pool.submit(measure_batch, plan, files, work, device, batch): batch for batch in batches}
        try:
            for job in as_completed(jobs):
                job.result()
                bar.update(jobs[job][2])
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "A process of the evaluation died, often for lack of memory. Run again with fewer processes."
            ) from error
        finally:
            for job in jobs:
                job.cancel()


def measure_batch(plan: Plan, files: Files, work: Path, device: str, batch: Batch) -> None:
    """Measure one batch in a worker process, which keeps its networks between batches."""
    open_evaluation(plan, files, work, device).measure(batch)


@cache
def open_evaluation(plan: Plan, files: Files, work: Path, device: str) -> Evaluation:
    return Evaluation(plan, files, work, device)


def describe_machine(device: str) -> dict[str, Any]:
    """Device and library versions, on which run times and rounding depend."""
    on_cuda = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else f"{torch.get_num_threads()} thread(s) of a CPU"
    return {"device": name, "torch": torch.__version__, "diffusers": import_diffusers().__version__}


def make_methods(plan: Plan, files: Files, digests: Mapping[str, str], device: str) -> list[Method]:
    """The paper's methods, in the order of its table."""
    open_files = partial(
        IntrinsicPipeline.from_preset, "tiny", device=device, dtype=getattr(torch, plan.precision)
    )
    ours = open_files(weights={"base": files.base, "vae": files.vae, "lora": files.lora})
    drop = Drop(middle_layers(ours.layers, READING))
    methods = [
        make_method("base", ours, plan, digests, "", maps=False),
        make_method("base_twice_the_steps", ours, plan, digests, "", maps=False, steps=2 * plan.steps),
        make_method("drop", ours, plan, digests, "lora", schedule=drop),
        make_method("gaussian", ours, plan, digests, "lora", schedule=Gaussian()),
        make_method("no_schedule", ours, plan, digests, "lora", schedule=Constant(1.0)),
    ]
    if files.ablation is not None:
        ablation = open_files(weights={"base": files.base, "vae": files.vae, "lora": files.ablation})
        methods.append(
            make_method("without_image_domain", ablation, plan, digests, "ablation", schedule=Gaussian())
        )
    return methods


def make_method(
    name: str,
    pipeline: IntrinsicPipeline,
    plan: Plan,
    digests: Mapping[str, str],
    lora: str,
    *,
    maps: bool = True,
    steps: int = 0,
    schedule: Schedule | None = None,
) -> Method:
    """`lora` is the field of Files that the method uses, "" for none."""
    steps = steps or plan.steps
    options: dict[str, Any] = {"maps": maps, "steps": steps, "guidance": plan.guidance, "reading": READING}
    options |= {"height": plan.size, "width": plan.size}
    settings = {
        "steps": steps,
        "guidance": plan.guidance,
        "size": plan.size,
        "sampler": "DDIM",
        "precision": plan.precision,
    }
    settings |= {"noise": "seed and caption's number"}
    if schedule is not None:
        numbers = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in vars(schedule).items()}
        settings |= {"schedule": type(schedule).__name__, "reading": READING, **numbers}
    settings["weights"] = {name: digests[name] for name in ("base", *(("vae", lora) if lora else ()))}
    options |= {"schedule": schedule} if schedule else {}
    return Method(name, settings, partial(pipeline, **options))


def measure(method: Method, judge: Judge, start: int, count: int, seed: int) -> Figures:
    """Generate and judge some images; `seconds` per image are sampling and decoding alone."""
    _, captions = hold_out(start, count)
    started = time.perf_counter()
    result = method.make(captions, seed=seed * SEED_STRIDE + start)
    seconds = (time.perf_counter() - started) / count
    figures = judge.measure(result.image, captions, result.maps)
    return figures | {"seconds": torch.full((count,), seconds, dtype=torch.float64)}


def measure_rendered(plan: Plan, judge: Judge, start: int, count: int, seed: int) -> Figures:
    """Judge rendered scenes of the test split, each with its own caption; `seed` is not used."""
    scenes, captions = hold_out(start, count)
    frames = render(scenes, plan.size, plan.size)
    return judge.measure(frames.image, captions, code_frames(frames))


def hash_settings(*settings: Any) -> str:
    """A short hash of JSON-serializable values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def join(batches: list[Figures]) -> Figures:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def summarize(seeds: list[Figures], reference: Figures) -> dict[str, dict[str, Any]]:
    """Each figure's mean over the images of a seed, ignoring NaN, then over seeds; see `summarize_seeds`.

    `frechet_*` are Fréchet distances to the features of the reference.
    """
    values = {
        name: [float(figures[name].nanmean()) for figures in seeds] for name in seeds[0] if name not in LAYERS
    }
    for layer in LAYERS:
        distances = [frechet_distance(figures[layer], reference[layer]) for figures in seeds]
        values[f"frechet_{layer}"] = distances
    return {name: summarize_seeds(each) for name, each in values.items()}


def measure_judges(
    judge: Judge, plan: Plan, digests: Mapping[str, str], work: Path
) -> dict[str, dict[str, float]]:
    """Accuracy of the judges on rendered images, cached like the rest."""
    count = min(plan.count, MOST_JUDGED)
    path = work / f"judges-{hash_settings(digests['scorer'], digests['predictor'], count, plan.size)}.json"
    if not path.is_file():
        accuracy = {
            "predictor": predictor_accuracy(judge.predictor, count, resolution=plan.size),
            "scorer": scorer_accuracy(judge.scorer, count, resolution=plan.size),
        }
        write_file(path, (json.dumps(accuracy, indent=1) + "\n").encode())
    return read_json_object(path)
