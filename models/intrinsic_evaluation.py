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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .core.export.files import write_file
from .core.weights import read_tensors, write_tensors
from .evaluation import hold_out
from .intrinsic_judge import Judge, code_frames
from .intrinsic_ldm import tiny
from .intrinsic_ldm.cogeneration import CoGeneration, Generated
from .intrinsic_ldm.config import GUIDANCE, PRECISIONS, STEPS
from .intrinsic_ldm.layers import Reading, middle_layers
from .intrinsic_ldm.schedules import Constant, Drop, Gaussian, Schedule
from .intrinsic_ldm.training_bases import import_diffusers
from .world import predictor, scorer
from .world.predictor_evaluation import predictor_accuracy
from .world.render import render
from .world.scorer_evaluation import scorer_accuracy
from .world.scorer_features import LAYERS, frechet_distance

READING: Reading = "blocks"  # as the node counts layers where none are named
APART = 1_000_003  # between the noise of one seed and the next; more than there are captions
RENDERED, OTHERS = "rendered", "rendered_others"
MOST_JUDGED = 256  # scenes on which the judges themselves are measured

Figures = dict[str, Tensor]  # by name, (pictures,), and features (pictures, channels) by the names of LAYERS


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
    make: Callable[..., Generated]  # (captions, seed=)


def evaluate_intrinsic_ldm(
    plan: Plan | None = None, files: Files | None = None, *, work: str | Path, device: str = "cpu"
) -> dict[str, Any]:
    """The report: settings, digests of the weights, each method's figures with mean, standard error and value for each seed, the same
    figures of rendered pictures, and how often the judges are right. `work` keeps what is done."""
    plan, files, work = plan or Plan(), files or Files(), Path(work)
    digests = files.digests()
    judge = Judge(scorer.Scorer.from_pretrained(files.scorer), predictor.Predictor.from_pretrained(files.predictor))
    methods = make_methods(plan, files, digests, device)
    with tqdm(total=2 * plan.count + plan.count * plan.seeds * len(methods), desc="evaluating", unit="picture") as bar:
        keep = partial(kept, work=work, judges={name: digests[name] for name in ("scorer", "predictor")}, plan=plan, bar=bar)
        rendered = measure_rendered(plan, judge, keep)
        found: dict[str, list[list[Figures]]] = {method.name: [[] for _ in range(plan.seeds)] for method in methods}
        for seed in range(plan.seeds):
            for start, count in plan.parts(plan.count):
                for method in methods:
                    figures = keep(method.name, method.settings, seed, start, count, partial(measure, method, judge))
                    found[method.name][seed].append(figures)
    reference = rendered[RENDERED]
    return {
        "settings": asdict(plan) | describe_machine(device),
        "weights": digests,
        "methods": {
            method.name: {"settings": dict(method.settings), "figures": summarise([join(parts) for parts in found[method.name]], reference)}
            for method in methods
        },
        RENDERED: summarise([reference], rendered[OTHERS]),
        "judges": measure_judges(judge, plan, digests, work),
    }


def describe_machine(device: str) -> dict[str, Any]:
    """What the times depend on, and the last digits."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else f"{torch.get_num_threads()} thread(s) of a CPU"
    return {"device": name, "torch": torch.__version__, "diffusers": import_diffusers().__version__}


def make_methods(plan: Plan, files: Files, digests: Mapping[str, str], device: str) -> list[Method]:
    """The paper's ways, in the order of its table."""
    open_files = partial(CoGeneration.from_files, files.base, files.vae, device=device, dtype=getattr(torch, plan.precision))
    ours = open_files(files.lora)
    drop = Drop(middle_layers(ours.layers, READING))
    methods = [
        make_method("base", ours, plan, digests, "", maps=False),
        make_method("base_twice_the_steps", ours, plan, digests, "", maps=False, steps=2 * plan.steps),
        make_method("drop", ours, plan, digests, "lora", schedule=drop),
        make_method("gaussian", ours, plan, digests, "lora", schedule=Gaussian()),
        make_method("no_schedule", ours, plan, digests, "lora", schedule=Constant(1.0)),
    ]
    if files.ablation is not None:
        methods.append(make_method("without_image_domain", open_files(files.ablation), plan, digests, "ablation", schedule=Gaussian()))
    return methods


def make_method(
    name: str, pipeline: CoGeneration, plan: Plan, digests: Mapping[str, str], lora: str, *, maps: bool = True, steps: int = 0,
    schedule: Schedule | None = None,
) -> Method:  # fmt: skip
    """`lora` names the file that takes part, "" for none."""
    steps = steps or plan.steps
    given = {"maps": maps, "steps": steps, "guidance": plan.guidance, "size": plan.size, "reading": READING}
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


def measure_rendered(plan: Plan, judge: Judge, keep: Callable[..., Figures]) -> dict[str, Figures]:
    """The captions' own scenes, rendered, with their exact maps; and as many other scenes, which tell what distance chance makes."""

    def look(start: int, count: int, seed: int) -> Figures:
        scenes, captions = hold_out(start, count)
        frames = render(scenes, plan.size, plan.size)
        return judge.measure(frames.image, captions, code_frames(frames))

    settings = {"size": plan.size}
    return {
        name: join([keep(name, settings, 0, first + start, count, look) for start, count in plan.parts(plan.count)])
        for name, first in ((RENDERED, 0), (OTHERS, plan.count))
    }


def kept(
    name: str, settings: Mapping[str, Any], seed: int, start: int, count: int, look: Callable[[int, int, int], Figures], *, work: Path,
    judges: Mapping[str, str], plan: Plan, bar: tqdm,
) -> Figures:  # fmt: skip
    """What `look` (start, count, seed) finds, from the work folder if it was found before."""
    path = work / f"{name}-{fingerprint(settings, judges, plan.batch)}-seed{seed}-{start:05d}-{count}.safetensors"
    if not path.is_file():
        bar.set_postfix_str(name)
        write_tensors(path, look(start, count, seed), {}, kind="part of an evaluation of I-LDM")
    bar.update(count)
    return read_tensors(path)


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
    return json.loads(path.read_text(encoding="utf-8"))
