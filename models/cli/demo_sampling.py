"""What `spatialweave demo` runs: the tiny model samples once, and the result is written in every format.

Each file is complete on disk before the next is begun.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.export.depth_files import load_depth
from ..core.export.exr import write_exr
from ..core.export.files import UnstatedError, write_file
from ..core.export.npz import write_npz
from ..core.export.ply import write_ply
from ..core.export.png8 import write_png8
from ..core.export.png16 import write_png16
from ..core.export.webp import write_webp
from ..core.geometry.points import view_to_point_cloud
from ..core.geometry.upscale import upscale_view
from ..core.geometry.view import View
from ..core.pictures import HAS_ALPHA, open_picture
from ..core.visualize.contact_sheet import contact_sheet, find_unprintable
from ..core.visualize.orbit import ASSUMED_FOV, render_orbit
from ..modality_forcing.config import DEFAULTS, Mode
from ..modality_forcing.pipeline import ModalityForcingPipeline, Result
from ..tiny.chinese import has_chinese, translate_chinese
from ..world.judges.candidates import CandidateScore
from .demo_candidates import (
    STEPS,
    explain_choice,
    judge_candidates,
    list_scores,
    take_candidate,
    write_candidates,
)

Notes = tuple[str, ...]  # a sentence per change of an input
RECORD = "run.json"
SIDE = DEFAULTS["tiny"].size  # pixels, the training resolution of the tiny model


@dataclass(frozen=True)
class DemoRequest:
    """The settings of one run. At most one of `image` and `depth`; with neither, both streams are sampled."""

    prompt: str
    output: Path
    image: Path | None = None
    depth: Path | None = None
    channel: str | None = None  # the depth channel of an EXR
    size: tuple[int, int] | None = None  # width, height; None: see `choose_size`
    full_size: bool = False  # the depth of an image, brought to the image's size
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    depth_guidance: float | None = None
    log2_alpha: float | None = None
    refine: bool = False  # joint mode: infer the depth again from the finished image
    candidates: int = 1
    keep_candidates: bool = False
    weights: Path | None = None

    @property
    def mode(self) -> Mode:
        if self.image and self.depth:
            raise ValueError("Expected --image or --depth, got both. Leave one out; it is generated.")
        if self.full_size and not self.image:
            raise ValueError("Expected --image for --full-size, got none. Leave --full-size out.")
        return "image_to_depth" if self.image else "depth_to_image" if self.depth else "joint"


class JudgedBatch(NamedTuple):
    """A batch of candidates, the index of the one that was kept, and the score of each."""

    result: Result
    best: int
    scores: list[CandidateScore]


def run_demo(request: DemoRequest) -> Iterator[str]:
    """Sample, then write; yields one line per note and per file."""
    stream, notes = read_input(request)  # first: an error must come before any folder is created
    size, scaling = choose_size(request.size, stream)
    pipeline = ModalityForcingPipeline.from_preset("tiny", weights=request.weights)
    replaced = find_earlier_run(request.output)
    make_folder(request.output)
    result, judged = choose_result(pipeline, sample(pipeline, request, size, stream), request.prompt)
    check_depth(result.view, request)
    title = explain_title(describe_run(request))
    chosen = (explain_choice(judged.best, judged.scores),) if judged else ()
    result = replace(result, notes=(*notes, *scaling, *result.notes, *title, *chosen))
    if request.full_size:
        result = bring_back(result, stream["image"])
    yield from (f"note: {note}" for note in (*replaced, *result.notes))
    yield result.view.describe()
    yield from write_all(request, result, judged)
    if judged and request.keep_candidates:
        yield from write_candidates(request.output / "candidates", *judged)


def choose_result(
    pipeline: ModalityForcingPipeline, result: Result, prompt: str
) -> tuple[Result, JudgedBatch | None]:
    """The best of the candidates, and all of them with their scores; None for a single one."""
    if len(result.image) == 1:
        return result, None
    best, scores = judge_candidates(result, prompt)
    one = take_candidate(result, best, infinite_sky=pipeline.config.infinite_sky)
    return one, JudgedBatch(result, best, scores)


def read_input(request: DemoRequest) -> tuple[dict[str, Any], Notes]:
    """The input stream as a keyword argument of the pipeline, none in joint mode; and notes on its file."""
    if request.mode == "joint":
        return {}, ()
    if request.image:
        image, notes = open_image(request.image)
        return {"image": image}, notes
    depth, notes = open_depth(request.depth, request.channel)
    return {"depth": depth}, notes


def choose_size(
    size: tuple[int, int] | None, stream: Mapping[str, Any]
) -> tuple[tuple[int, int], Notes]:
    """(width, height), and a note if the input is scaled.

    The size is `size`; else the input's own, at most the training resolution; else its square.
    """
    if size or not stream:
        return size or (SIDE, SIDE), ()
    shape = stream["image"].shape[1:3] if "image" in stream else stream["depth"].depth.shape[1:]
    height, width = shape
    longest = max(width, height)
    if longest <= SIDE:
        return (width, height), ()
    scaled = tuple(max(1, round(side * SIDE / longest)) for side in (width, height))
    note = (
        f"The longer side was scaled from {longest} to {SIDE} pixels, the training resolution of the tiny "
        "model; set --size for another, or --full-size to bring the depth back to the image's size."
    )
    return scaled, (note,)


def sample(
    pipeline: ModalityForcingPipeline, request: DemoRequest, size: tuple[int, int], stream: Mapping[str, Any]
) -> Result:
    with tqdm(desc=request.mode.replace("_", " "), unit="step") as bar:

        def on_step(step: int, steps: int, latents: Mapping[str, Tensor]) -> None:
            bar.total = steps
            bar.update()

        return pipeline(
            request.prompt,
            mode=request.mode,
            width=size[0],
            height=size[1],
            seed=request.seed,
            steps=STEPS if request.steps is None and request.candidates > 1 else request.steps,
            batch_size=request.candidates,
            guidance=request.guidance,
            depth_guidance=request.depth_guidance,
            log2_alpha=request.log2_alpha,
            refine=request.refine,
            on_step=on_step,
            **stream,
        )


def bring_back(result: Result, image: Tensor) -> Result:
    """The result with the image (b, h, w, c) as it was given, and the depth at its size, guided by it."""
    view = upscale_view(result.view, image[..., :3].float())
    note = f"The depth was brought to {image.shape[2]} x {image.shape[1]} pixels, guided by the image."
    return replace(result, image=view.image, view=view, notes=(*result.notes, note))


def check_depth(view: View, request: DemoRequest) -> None:
    """ValueError for a depth without a valid pixel, before anything is written."""
    try:
        view.require_valid()
    except ValueError as error:
        guidance = "weaker guidance" + ("" if request.guidance is None else f" than {request.guidance:g}")
        raise ValueError(
            f"Expected a depth with valid pixels, got none from the model. Try more steps or {guidance}."
        ) from error


def write_all(request: DemoRequest, result: Result, judged: JudgedBatch | None) -> Iterator[str]:
    """Write every format, and yield a line for each file once it is written.

    Files: image.png, depth.png (16 bit, with depth.json), depth.exr, depth.npz, points.ply, orbit.webp,
    sheet.png, run.json.
    """
    started, folder, view = time.perf_counter(), request.output, result.view
    yield f"wrote {write_png8(folder / 'image.png', result.image[0])}"
    yield f"wrote {write_png16(folder / 'depth.png', view)}"
    yield f"wrote {write_exr(folder / 'depth.exr', view)}"
    yield f"wrote {write_npz(folder / 'depth.npz', view)}"
    assumed = None if view.intrinsics is not None else ASSUMED_FOV
    (cloud,) = view_to_point_cloud(view, fov_degrees=assumed)
    camera = f"horizontal field of view {assumed:.0f} degrees assumed" if assumed else "camera as given"
    lines = [f"depth is {view.units}; {camera}"]
    points = write_ply(folder / "points.ply", cloud.points, cloud.colors, cloud.normals, comments=lines)
    yield f"wrote {points}"
    orbit = render_orbit(view)
    yield f"wrote {write_webp(folder / 'orbit.webp', orbit.frames)}"
    system = "SpatialWeave: Modality Forcing, tiny preset"
    facts = [f"seed {result.seed}", f"sampled in {result.seconds:.1f} s", system]
    if request.refine:
        facts.insert(1, "depth refined")
    sheet = contact_sheet(view, orbit, caption=describe_run(request), facts=facts)
    yield f"wrote {write_png8(folder / 'sheet.png', sheet)}"
    candidates = {"candidates": list_scores(judged.best, judged.scores)} if judged else {}
    record = {
        "prompt": request.prompt,
        "mode": request.mode,
        "seed": result.seed,
        "refine": request.refine,
        "notes": list(result.notes),
        "units": view.units,
        "sampling_seconds": round(result.seconds, 2),
        "writing_seconds": round(time.perf_counter() - started, 2),
    } | candidates
    yield f"wrote {write_file(folder / RECORD, (json.dumps(record, indent=2) + chr(10)).encode())}"


def describe_run(request: DemoRequest) -> str:
    """The sheet's title; a Chinese prompt as it is read."""
    prompt = translate_chinese(request.prompt)[0] if has_chinese(request.prompt) else request.prompt
    if request.mode == "joint":
        return prompt or "(empty prompt)"
    source = f"{request.mode.replace('_', ' ')}: {(request.image or request.depth).name}"
    return f"{source}, {prompt}" if prompt else source


def explain_title(title: str) -> Notes:
    """A note on the characters that the sheet cannot print."""
    missing = find_unprintable(title)
    named = ", ".join(f"'{char}'" for char in missing[:5]) + (" and others" if len(missing) > 5 else "")
    return (f"The sheet's font has no {named}: its title leaves them out.",) if missing else ()


def open_image(path: Path) -> tuple[Tensor, Notes]:
    """An image file of any channels and bit depth as (b, h, w, 3), or (b, h, w, 4) with its alpha; notes."""
    image = open_picture(path)
    notes = tuple(note for note in image.notes if note != HAS_ALPHA)  # the pipeline has it for four channels
    rgb, alpha = image.rgb, image.alpha
    return rgb if alpha is None else torch.cat([rgb, alpha[..., None]], dim=-1), notes


def open_depth(path: Path, channel: str | None) -> tuple[View, Notes]:
    """A depth file, relative if it states no unit, and notes.

    Without a unit its scale is irrelevant: the model sees ratios.
    """
    notes: Notes = ()
    try:
        view, left_out = load_depth(path, channel=channel)
    except UnstatedError:
        notes = (
            f"{path.name} does not say its scale or unit: "
            "its values were read as relative depth, larger = farther.",
        )
        view, left_out = load_depth(path, channel=channel, scale=1.0, units="relative")
    if len(view) != 1:
        raise ValueError(
            f"Expected one depth map in {path}, got a batch of {len(view)}. Save one to a separate file."
        )
    return view, (*notes, *left_out)


def find_earlier_run(folder: Path) -> Notes:
    """A note on a run whose files lie in the folder, and will be replaced."""
    try:
        earlier = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        what = f"{earlier['prompt']!r}, seed {earlier['seed']}"
    except OSError:
        return ()
    except (ValueError, TypeError, LookupError):
        what = f"its {RECORD} cannot be read"
    remedy = "--output names another folder"
    return (f"{folder} holds an earlier run ({what}), which this one replaces; {remedy}.",)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"Cannot create the output folder {folder} ({error.strerror}). Choose another with --output."
        ) from error
