"""Evaluation of the tiny I-LDM on held-out captions of the procedural world: what stands in docs/evidence.md is measured here.

Each method makes the same captions from the same noise, a few pictures at a time and in turns, so that their times are of one run. What was
measured on a few pictures goes into a file of the work folder at once: an evaluation that was stopped goes on where it was. A file's name
tells everything that decides its content, so other settings or weights make other files.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
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
from .intrinsic_judge import Judge, code_frames
from .modality_forcing import hold_out

READING: Reading = "blocks"  # as the node counts layers where none are named
APART = 1_000_003  # between the noise of one seed and the next; more than there are captions
RENDERED, OTHERS = "rendered", "rendered_others"
MOST_JUDGED = 256  # scenes on which the judges themselves are measured

Figures = dict[str, Tensor]  # by name, (pictures,), and features (pictures, channels) by the names of LAYERS
Look = Callable[[int, int, int], Figures]  # (first picture, how many, seed)
Part = tuple[int | None, int, int]  # (seed, or None for renderings, first picture, how many)


@dataclass(frozen=True)
class Plan:
    """What every method is measured on."""

    count: int = 512  # captions
    seeds: int = 3
    steps: int = STEPS
    guidance: float = GUIDANCE
    batch: int = 16
    size: int = tiny.SIZE
    precision: str = PRECISIONS[0]  # in which the networks make pictures; the judges stay with float32

    def __post_init__(self) -> None:
        if self.count < 2 or min(self.seeds, self.steps, self.batch) < 1:
            raise ValueError(f"{self} arrived; an evaluation needs at least 2 captions, and 1 seed, step and picture at a time.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"The precision {self.precision!r} arrived; it is one of {', '.join(PRECISIONS)}.")

    def parts(self, count: int) -> Iterator[tuple[int, int]]:
        """(first picture, how many) of each part of `count` pictures."""
        return ((start, min(self.batch, count - start)) for start in range(0, count, self.batch))


@dataclass(frozen=True)
class Files:
    """The weights: the system's, the LoRA trained without the image domain if there is one, and the judges'."""

    base: Path = tiny.BASE_FILE
    vae: Path = tiny.VAE_FILE
    lora: Path = tiny.LORA_FILE
    ablation: Path | None = None
    scorer: Path = scorer.WEIGHTS
    predictor: Path = predictor.WEIGHTS

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file; OSError names one that is not there."""
        paths = {name: path for name, path in vars(self).items() if path is not None}
        return {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items()}


@dataclass(frozen=True)
class Method:
    """One way to make pictures; `settings` is all that decides them."""

    name: str
    settings: Mapping[str, Any]
    make: Callable[..., Result]  # (captions, seed=)


class Rig:
    """Judges and methods, and the folder of what they found."""

    def __init__(self, plan: Plan, files: Files, work: Path, device: str):
        self.plan, self.work, self.digests = plan, work, files.digests()
        self.judge = Judge(scorer.Scorer.from_pretrained(files.scorer), predictor.Predictor.from_pretrained(files.predictor))
        self.methods = make_methods(plan, files, self.digests, device)

    def keep(self, name: str, settings: Mapping[str, Any], seed: int, start: int, count: int, look: Look) -> Figures:
        """What `look` (start, count, seed) finds, from the work folder if it was found before."""
        judges = {judge: self.digests[judge] for judge in ("scorer", "predictor")}
        number = fingerprint(settings, judges, self.plan.batch)
        path = self.work / f"{name}-{number}-seed{seed}-{start:05d}-{count}.safetensors"
        if not path.is_file():
            write_tensors(path, look(start, count, seed), {}, kind="part of an evaluation of I-LDM")
        return read_tensors(path, finite=False)  # a figure of nothing is NaN

    def rendered(self, start: int, count: int) -> dict[str, Figures]:
        """Of the captions' own scenes, with their exact maps; and of as many others, which tell what distance chance makes."""
        look, settings = partial(look_at_rendered, self.plan, self.judge), {"size": self.plan.size}
        firsts = {RENDERED: 0, OTHERS: self.plan.count}
        return {name: self.keep(name, settings, 0, first + start, count, look) for name, first in firsts.items()}

    def generated(self, seed: int, start: int, count: int) -> dict[str, Figures]:
        """Of every method's pictures, one method after the other."""
        return {
            method.name: self.keep(method.name, method.settings, seed, start, count, partial(measure, method, self.judge))
            for method in self.methods
        }

    def measure(self, part: Part) -> dict[str, Figures]:
        seed, start, count = part
        return self.rendered(start, count) if seed is None else self.generated(seed, start, count)


def evaluate_intrinsic_ldm(
    plan: Plan | None = None, files: Files | None = None, *, work: str | Path, device: str = "cpu", processes: int = 1
) -> dict[str, Any]:
    """The report: settings, digests of the weights, each method's figures with mean, standard error and value for each seed, the same
    figures of rendered pictures, and how often the judges are right. `work` keeps what is done, and `processes` share it."""
    if processes < 1:
        raise ValueError(f"{processes} processes arrived; an evaluation is shared by at least 1.")
    plan, files, work = plan or Plan(), files or Files(), Path(work)
    parts: list[Part] = [(seed, *part) for seed in (None, *range(plan.seeds)) for part in plan.parts(plan.count)]
    found: dict[str, dict[int | None, list[Figures]]] = {}
    with tqdm(total=plan.count * (1 + plan.seeds), desc="evaluating", unit="picture") as bar:
        if processes > 1:
            share(plan, files, work, device, parts, processes, bar)
        rig = Rig(plan, files, work, device)
        for part in parts:
            for name, figures in rig.measure(part).items():
                found.setdefault(name, {}).setdefault(part[0], []).append(figures)
            bar.update(part[2] if processes <= 1 else 0)
    joined = {name: [join(each) for each in seeds.values()] for name, seeds in found.items()}
    (reference,), (others,) = joined[RENDERED], joined[OTHERS]
    return {
        "settings": asdict(plan) | describe_machine(device) | {"processes": processes},
        "weights": rig.digests,
        "methods": {
            method.name: {"settings": dict(method.settings), "figures": summarise(joined[method.name], reference)} for method in rig.methods
        },
        RENDERED: summarise([reference], others),
        "judges": measure_judges(rig.judge, plan, rig.digests, work),
    }


def share(plan: Plan, files: Files, work: Path, device: str, parts: list[Part], processes: int, bar: tqdm) -> None:
    """Have everything measured into the work folder. ChildProcessError where a process dies."""
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = {pool.submit(measure_part, plan, files, work, device, part): part for part in parts}
        try:
            for job in as_completed(jobs):
                job.result()
                bar.update(jobs[job][2])
        except BrokenProcessPool as error:
            raise ChildProcessError("A process of the evaluation died, often for want of memory; run again with fewer.") from error
        finally:
            for job in jobs:
                job.cancel()


def measure_part(plan: Plan, files: Files, work: Path, device: str, part: Part) -> None:
    """One job of a process, whose rig stays from job to job."""
    open_rig(plan, files, work, device).measure(part)


@cache
def open_rig(plan: Plan, files: Files, work: Path, device: str) -> Rig:
    return Rig(plan, files, work, device)


def describe_machine(device: str) -> dict[str, Any]:
    """What the times depend on, and the last digits."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else f"{torch.get_num_threads()} thread(s) of a CPU"
    return {"device": name, "torch": torch.__version__, "diffusers": import_diffusers().__version__}


def make_methods(plan: Plan, files: Files, digests: Mapping[str, str], device: str) -> list[Method]:
    """The paper's ways, in the order of its table."""
    open_files = partial(IntrinsicPipeline.from_preset, "tiny", device=device, dtype=getattr(torch, plan.precision))
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
        without = open_files(weights={"base": files.base, "vae": files.vae, "lora": files.ablation})
        methods.append(make_method("without_image_domain", without, plan, digests, "ablation", schedule=Gaussian()))
    return methods


def make_method(
    name: str, pipeline: IntrinsicPipeline, plan: Plan, digests: Mapping[str, str], lora: str, *, maps: bool = True, steps: int = 0,
    schedule: Schedule | None = None,
) -> Method:  # fmt: skip
    """`lora` names the file that takes part, "" for none."""
    steps = steps or plan.steps
    given = {"maps": maps, "steps": steps, "guidance": plan.guidance, "height": plan.size, "width": plan.size, "reading": READING}
    words = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in vars(schedule).items()} if schedule else {}
    settings = {"steps": steps, "guidance": plan.guidance, "size": plan.size, "sampler": "DDIM", "precision": plan.precision}
    settings |= {"noise": "seed and caption's number"}
    if schedule is not None:
        settings |= {"schedule": type(schedule).__name__, "reading": READING, **words}
    settings["weights"] = {part: digests[part] for part in ("base", *(("vae", lora) if lora else ()))}
    return Method(name, settings, partial(pipeline, **given, **({"schedule": schedule} if schedule else {})))


def measure(method: Method, judge: Judge, start: int, count: int, seed: int) -> Figures:
    """Some pictures, made and judged; `seconds` a picture is sampling and decoding alone."""
    _, captions = hold_out(start, count)
    began = time.perf_counter()
    made = method.make(captions, seed=seed * APART + start)
    seconds = (time.perf_counter() - began) / count
    figures = judge.measure(made.image, captions, made.maps)
    return figures | {"seconds": torch.full((count,), seconds, dtype=torch.float64)}


def look_at_rendered(plan: Plan, judge: Judge, start: int, count: int, seed: int) -> Figures:
    """Scenes of the test split, each with its own caption; `seed` is of no consequence."""
    scenes, captions = hold_out(start, count)
    frames = render(scenes, plan.size, plan.size)
    return judge.measure(frames.image, captions, code_frames(frames))


def fingerprint(*settings: Any) -> str:
    """A short number of anything that JSON can say."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def join(parts: list[Figures]) -> Figures:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def summarise(seeds: list[Figures], reference: Figures) -> dict[str, dict[str, Any]]:
    """Each figure's mean over the pictures of a seed, NaN left out, then over seeds; `frechet_...` are distances to the reference.

    The error is the standard error over seeds, None for a single one; all is None where a seed has nothing to measure.
    """
    values = {name: [float(figures[name].nanmean()) for figures in seeds] for name in seeds[0] if name not in LAYERS}
    values |= {f"frechet_{layer}": [frechet_distance(figures[layer], reference[layer]) for figures in seeds] for layer in LAYERS}
    return {name: summarise_seeds(each) for name, each in values.items()}


def summarise_seeds(values: list[float]) -> dict[str, Any]:
    if any(math.isnan(value) for value in values):
        return {"mean": None, "error": None, "per_seed": [None] * len(values)}
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "error": error, "per_seed": values}


def measure_judges(judge: Judge, plan: Plan, digests: Mapping[str, str], work: Path) -> dict[str, dict[str, float]]:
    """How right the judges are on rendered pictures, kept like the rest."""
    count = min(plan.count, MOST_JUDGED)
    path = work / f"judges-{fingerprint(digests['scorer'], digests['predictor'], count, plan.size)}.json"
    if not path.is_file():
        found = {
            "predictor": predictor_accuracy(judge.predictor, count, resolution=plan.size),
            "scorer": scorer_accuracy(judge.scorer, count, resolution=plan.size),
        }
        write_file(path, (json.dumps(found, indent=1) + "\n").encode())
    return read_json_object(path)
