"""Renders the procedural world into dataset folders (CC0) of safetensors shards or PNG files.

    FOLDER/dataset.json     settings of the export, conventions of the data; "finished" once complete
    FOLDER/manifest.jsonl  one line per sample: "shard", "row", "caption", "captions", "objects", "scene", ...
    FOLDER/shard-00000.safetensors      layout "shards"; n scenes each, OpenCV camera:
        image         uint8   (n, H, W, 3)
        depth         float16 or float32 (n, H, W), metres along z, inf = sky
        segmentation  int16   (n, H, W), 0 = surroundings, i + 1 = object i of the line's "objects", -1 = sky
        line          uint8   (n, H, W), 1 = line
        normals       int8    (n, H, W, 3), optional; 127 times the unit normal in the camera frame, 0 = sky
        intrinsics    float32 (n, 3, 3), pixels
        world_to_cam  float32 (n, 4, 4)
    FOLDER/image/000000.png, depth/...  layout "files"; the manifest line has the paths and the camera:
        image, line, normals (8 bits); segmentation (8 bits, 255 = sky);
        depth (16 bits, metres = value * depth_scale, 0 = sky)

With `kind="edits"` (of `world.edits`) and `kind="moves"` (of `world.moves`) a sample also has the scene after
the edit, under the same names with the prefix `target_`. Its manifest line has "instruction", "kind",
"object" (index in "objects", null for camera edits) and "parameters".

Captions are `caption(scene, random.Random(f"{split}/{seed}/{index}/{k}"))` for k = 0 ... 3; "caption" is the
first. `core.training.data.FolderDataset` reads both layouts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tqdm import tqdm

from ...core.text_files import read_json_lines
from ...core.training.data import MANIFEST, FolderDataset
from ...core.training.settings import Size, as_size
from ...core.training.shards import DATASET, FINISHED, ShardFolder
from ..captions import caption
from ..edits import Edit, sample_edits
from ..moves import sample_moves
from ..render import Frames, render
from ..scene import SPLITS, Scene, Split, sample_scenes
from .layout import write_pictures, write_shard_file

Kind = Literal["scenes", "edits", "moves"]
Layout = Literal["shards", "files"]
DepthType = Literal["float16", "float32"]
FORMAT, VERSION, LICENCE = "spatialweave-world", 1, "CC0-1.0"
CAPTIONS = 4
# types of the keys of a recipe's `data` for a folder of this format
DATA_KINDS = {"folder": str, "scenes": int, "size": Size}
_FILES = ("shard", "image", "depth", "segmentation", "line", "normals")  # keys of a line that name a file
_RENDER_BATCH = 50
_CONVENTIONS = {
    "camera": (
        "OpenCV: x right, y down, z forward; pixel centres at +0.5; world_to_cam maps world points (y up, "
        "metres) to it"
    ),
    "depth": "metres along z, larger = farther; sky is inf in shards and 0 in 16-bit PNG",
}


@dataclass(frozen=True)
class ExportRequest:
    """Settings of an export; equal settings write equal bytes with any number of workers."""

    count: int
    height: int = 128
    width: int = 128
    seed: int = 0
    split: Split = "train"
    kind: Kind = "scenes"
    layout: Layout = "shards"
    normals: bool = False
    depth_type: DepthType = "float16"
    shard_size: int = 500
    samples: int = 2
    max_objects: int = 3

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("height", 8), ("width", 8), ("shard_size", 1), ("samples", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"Expected at least {least} as the dataset's {name}, got {getattr(self, name)}. "
                    f"Correct {name}."
                )
        options = {
            "split": SPLITS,
            "kind": get_args(Kind),
            "layout": get_args(Layout),
            "depth_type": get_args(DepthType),
        }
        for name, allowed in options.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Expected one of {', '.join(allowed)} as the dataset's {name}, got "
                    f"{getattr(self, name)!r}. Choose one of them."
                )

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def rows(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


@dataclass(frozen=True)
class Summary:
    """The result of an export: samples in the folder, samples rendered in this run, seconds."""

    folder: Path
    count: int
    rendered: int
    seconds: float

    def __str__(self) -> str:
        kept = (
            f", {self.count - self.rendered} of them from an earlier run"
            if self.rendered < self.count
            else ""
        )
        return (
            f"{self.folder}: {self.count} samples{kept}, "
            f"{self.rendered / max(self.seconds, 1e-9):.1f} a second."
        )


def export_dataset(
    folder: str | Path, count: int, *, size: int | tuple[int, int] = 128, workers: int = 1, **options: Any
) -> Summary:
    """Write a dataset; `size` is one side or (height, width), `options` the other fields of ExportRequest.

    An unfinished folder of the same request is completed: whole shards are kept. A larger count extends a
    folder. Raises ValueError for settings that differ from the folder's, ExportError (an OSError) if a file
    cannot be written, and ChildProcessError (an OSError, too) if a worker process dies.
    """
    height, width = (size, size) if isinstance(size, int) else size
    request, shards = ExportRequest(count, height, width, **options), ShardFolder(Path(folder))
    started = time.perf_counter()
    lines = _finished_lines(shards, request)
    missing = [
        number for number in range(request.shards) if len(lines.get(number, ())) != len(request.rows(number))
    ]
    for number in lines:
        shards.write_marker(number, lines[number])
    shards.write_facts(_describe(request), finished=False)
    rendered = sum(len(request.rows(number)) for number in missing)
    with tqdm(total=count, initial=count - rendered, desc="world", unit="scene", dynamic_ncols=True) as bar:
        for done in _run_jobs(shards, request, missing, workers, bar.update):
            bar.update(done)
    lines |= {number: _read_lines(shards.marker_file(number)) for number in missing}
    shards.finish((line for number in range(request.shards) for line in lines[number]), _describe(request))
    return Summary(shards.path, count, rendered, time.perf_counter() - started)


def open_world(
    data: Mapping[str, Any], *, keys: Sequence[str] | None = None, needs: Sequence[str] = ()
) -> FolderDataset:
    """The dataset folder of a recipe's `data`; a missing one raises ValueError with the command to make it.

    `keys` selects tensors, None for all; a sample without the tensors or manifest entries of `needs` raises
    an error.
    """
    folder = Path(str(data.get("folder", "")))
    if not (folder / MANIFEST).is_file():
        normals = " --normals" if "normals" in (keys or ()) else ""
        raise ValueError(
            f"Expected a dataset to train on in {folder}, got none. Write it with: spatialweave world "
            f"{folder} --scenes {data.get('scenes', 24000)} --size {max(as_size(data.get('size', 128)))} "
            f"--workers 2{normals}"
        )
    return FolderDataset(folder, keys=keys, needs=needs)


def _run_jobs(
    shards: ShardFolder, request: ExportRequest, missing: list[int], workers: int, tick: Callable[[int], Any]
) -> Iterator[int]:
    """Write the missing shards.

    With worker processes it yields the number of scenes of each finished shard; without, it yields nothing
    and calls `tick` with the size of each rendered batch.
    """
    if workers <= 1 or len(missing) <= 1:
        for number in missing:
            write_shard(shards, request, number, tick)
        return
    with ProcessPoolExecutor(
        min(workers, len(missing)), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = {pool.submit(write_shard, shards, request, number): number for number in missing}
        try:
            for job in as_completed(jobs):
                job.result()
                yield len(request.rows(jobs[job]))
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "Expected the worker processes to finish, got one that ended early, often for lack of "
                "memory. Run again with fewer workers; whole shards are kept."
            ) from error
        finally:
            for job in jobs:
                job.cancel()


def write_shard(
    shards: ShardFolder, request: ExportRequest, number: int, tick: Callable[[int], Any] | None = None
) -> None:
    """Render and write one shard; its manifest lines come last, so that they mark a complete shard."""
    rows = request.rows(number)
    samples = _sample(request, rows)
    scenes = {"": [sample.source if isinstance(sample, Edit) else sample for sample in samples]}
    if request.kind != "scenes":
        scenes["target_"] = [sample.target for sample in samples]
    if request.kind == "moves":
        frames = _render_once(scenes, request, tick)
    else:
        frames = {
            prefix: _render(part, request, tick if prefix == "" else None) for prefix, part in scenes.items()
        }
    write = write_shard_file if request.layout == "shards" else write_pictures
    depth_type = getattr(torch, request.depth_type)
    locations = write(
        shards.path, shards.shard_name(number), rows, frames, normals=request.normals, depth_type=depth_type
    )
    entries = zip(rows, locations, samples, strict=True)
    shards.write_marker(
        number, [{"index": i, **location, **_facts(sample, request, i)} for i, location, sample in entries]
    )


def _sample(request: ExportRequest, rows: range) -> list[Scene] | list[Edit]:
    draw = {"scenes": sample_scenes, "edits": sample_edits, "moves": sample_moves}[request.kind]
    return draw(
        request.seed, len(rows), split=request.split, max_objects=request.max_objects, start=rows.start
    )


def _render(
    scenes: list[Scene], request: ExportRequest, tick: Callable[[int], Any] | None
) -> Iterator[Frames]:
    for start in range(0, len(scenes), _RENDER_BATCH):
        frames = render(
            scenes[start : start + _RENDER_BATCH], request.height, request.width, samples=request.samples
        )
        if tick:
            tick(len(frames))
        yield frames


def _render_once(
    scenes: Mapping[str, list[Scene]], request: ExportRequest, tick: Callable[[int], Any] | None
) -> dict[str, list[Frames]]:
    """The frames of each prefix; a scene that several samples share is rendered once."""
    rows = {scene: row for row, scene in enumerate(dict.fromkeys(sum(scenes.values(), [])))}
    once = list(_render(list(rows), request, None))
    frames = Frames(*(torch.cat([getattr(part, f.name) for part in once]) for f in fields(Frames)))
    picked = {prefix: [rows[scene] for scene in part] for prefix, part in scenes.items()}
    if tick:
        tick(len(scenes[""]))
    return {
        prefix: [Frames(*(getattr(frames, f.name)[index] for f in fields(Frames)))]
        for prefix, index in picked.items()
    }


def _facts(sample: Scene | Edit, request: ExportRequest, index: int) -> dict[str, Any]:
    """Manifest entries of a scene, or of both scenes of an edit."""
    if isinstance(sample, Scene):
        return _scene_facts(sample, request, index)
    target = {f"target_{key}": value for key, value in _scene_facts(sample.target, request, index).items()}
    edit = {
        "instruction": sample.instruction,
        "kind": sample.kind,
        "object": sample.object,
        "parameters": sample.parameters,
    }
    return {**edit, **_scene_facts(sample.source, request, index), **target}


def _scene_facts(scene: Scene, request: ExportRequest, index: int) -> dict[str, Any]:
    captions = [
        caption(scene, random.Random(f"{request.split}/{request.seed}/{index}/{k}")) for k in range(CAPTIONS)
    ]
    return {
        "caption": captions[0],
        "captions": captions,
        "objects": [item.name for item in scene.objects],
        "scene": scene.to_json(),
    }


def _finished_lines(folder: ShardFolder, request: ExportRequest) -> dict[int, list[dict[str, Any]]]:
    """Manifest lines of the complete shards of an earlier run of the same request, by shard number."""
    facts = _read_facts(folder)
    if not facts:
        return {}
    expected = asdict(request)
    count = facts.get("count")
    extends = isinstance(count, int) and count < request.count
    changed = [
        key for key in expected if facts.get(key) != expected[key] and not (key == "count" and extends)
    ]
    if changed:
        named = ", ".join(f"{key} {facts.get(key)!r}, not {expected[key]!r}" for key in changed)
        raise ValueError(
            f"Expected the settings of the dataset in {folder.path}, got {named}. Give the same settings to "
            "continue, or choose another folder."
        )
    numbers = range(request.shards)
    if facts.get(FINISHED):
        manifest = folder.path / MANIFEST
        lines = _read_lines(manifest) if manifest.is_file() else []
        found = {
            number: [line for line in lines if line.get("index") in request.rows(number)]
            for number in numbers
        }
    else:
        markers = {number: folder.marker_file(number) for number in numbers}
        found = {number: _read_lines(marker) for number, marker in markers.items() if marker.is_file()}
    return {number: lines for number, lines in found.items() if _has_files(folder.path, lines)}


def _has_files(folder: Path, lines: list[dict[str, Any]]) -> bool:
    """Whether all files named in a shard's manifest lines exist."""
    names = {line[key] for line in lines for key in line if key.removeprefix("target_") in _FILES}
    return all((folder / name).is_file() for name in names)


def _read_facts(folder: ShardFolder) -> dict[str, Any]:
    """The content of dataset.json, {} for a new folder; ValueError for another format or version."""
    facts = folder.read_facts()
    if facts and (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"Expected {FORMAT!r} of version {VERSION} in {folder.path / DATASET}, got "
            f"{facts.get('format')!r} of version "
            f"{facts.get('version')!r}. Choose another folder."
        )
    return facts


def _describe(request: ExportRequest) -> dict[str, Any]:
    """The content of dataset.json for a request."""
    return {"format": FORMAT, "version": VERSION, "licence": LICENCE, **asdict(request), **_CONVENTIONS}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [line for _, line in read_json_lines(path)]
