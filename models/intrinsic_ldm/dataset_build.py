"""A dataset folder with intrinsic maps from plain pictures: `spatialweave intrinsics build`, with the estimators of a running ComfyUI.

Each picture is brought to one size and put through a workflow in API form, by its first Load Image; what that saves is gathered. Which map
a saved file is, the saver's `filename_prefix` says by its last word: .../depth is an NPZ of Save Depth, with sky and normals where the
estimator gives them; .../normals a normal map in OpenGL's colours, which then counts; .../segmentation one picture for each mask;
.../line white on black. A .txt of the same name beside a picture is its caption.

Shards hold image uint8, depth float32 (0 = not known), normals int8 (127 times the unit normal, 0 = not known), segmentation int16
(0 = no mask, -1 = sky), line float16; `dataset.py` reads them. A picture on which the workflow fails is left out and named in the log;
a shard on which it fails throughout ends the run.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ..core.export.files import write_file
from ..core.export.npz import read_npz
from ..core.geometry.normals import view_with_normals
from ..core.geometry.view import View
from ..core.training.data import fit_map
from .dataset import INTEGER_NORMAL, SKY, read_line, read_normals
from .dataset_server import RunFailed, Server
from .dataset_shards import Summary, write_folder
from .segments import masks_to_ids

log = logging.getLogger("spatialweave.dataset")

FORMAT, VERSION = "spatialweave-intrinsics", 1
WORKFLOW = Path(__file__).parents[2] / "workflows" / "api" / "build_intrinsic_dataset.json"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SAVED = ("depth", "normals", "segmentation", "line")


def build_dataset(
    source: str | Path, output: str | Path, *, servers: Sequence[str], size: Sequence[int] = (512, 512), workflow: str | Path = WORKFLOW,
    changes: Sequence[str] = (), shard_size: int = 64, timeout: float = 600,
) -> Summary:  # fmt: skip
    """Estimate the maps of every picture below `source`. `size` (height, width); `changes` are NODE.INPUT=VALUE for the workflow.

    Of several processes each asks its own of the `servers`, in turn where there are fewer.
    """
    source, output = Path(source), Path(output)
    pictures = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES) if source.is_dir() else []
    if not pictures:
        raise ValueError(f"{source} is no folder with pictures in it ({', '.join(PICTURES)}); name one.")
    graph = read_graph(Path(workflow), changes)
    named = "\n".join(path.relative_to(source).as_posix() for path in pictures)
    facts = {
        "format": FORMAT, "version": VERSION, "source": source.name, "size": list(size), "pictures_sha256": digest(named),
        "workflow": Path(workflow).name, "workflow_sha256": digest(json.dumps(graph, sort_keys=True)),
    }  # fmt: skip
    upload = f"spatialweave_{uuid.uuid4().hex[:12]}.png"  # one file of each process in the server's input folder, written over and over

    def write(name: str, rows: range, state) -> list[dict[str, Any]]:
        server = Server(servers[state.process_index % len(servers)], seconds=timeout)
        samples, lines, failed = [], [], None
        for index in rows:
            path = pictures[index]
            try:
                samples.append(estimate(server, graph, read_picture(path, size), upload))
            except RunFailed as error:
                log.warning("%s is left out: %s", path, error)
                failed = error
                continue
            lines.append(
                {"shard": f"{name}.safetensors", "row": len(lines), "source": path.relative_to(source).as_posix(), **caption(path)}
            )
        if not samples:
            raise ValueError(f"None of the {len(rows)} pictures from {pictures[rows.start]} on went through; the last: {failed}")
        write_file(output / f"{name}.safetensors", save(stack_samples(samples)))
        return lines

    return write_folder(output, facts, count=len(pictures), shard_size=shard_size, write=write, what="intrinsics")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_graph(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    """A workflow in API form with changed inputs; ValueError where it has no picture to take or saves no map."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"The workflow {path} cannot be read ({error}); export one from ComfyUI in API form.") from error
    if not isinstance(graph, dict) or "nodes" in graph:
        raise ValueError(f"{path} is a workflow as the browser saves it; export it in API form.")
    for change in changes:
        place, _, value = change.partition("=")
        node, _, name = place.partition(".")
        if name not in graph.get(node, {}).get("inputs", {}):
            raise ValueError(f"There is no input {place!r} in {path.name}; give --set NODE.INPUT=VALUE with one that is there.")
        try:
            graph[node]["inputs"][name] = json.loads(value)
        except ValueError:
            graph[node]["inputs"][name] = value
    if not any(node["class_type"] == "LoadImage" for node in graph.values()) or not find_savers(graph):
        raise ValueError(
            f"{path.name} has no Load Image, or no saver whose filename_prefix ends in one of {', '.join(SAVED)}; start from "
            f"workflows/{WORKFLOW.name}."
        )
    return graph


def find_savers(graph: Mapping[str, Any]) -> dict[str, str]:
    """Which map each saving node saves, by node id."""
    prefixes = {node: str(entry["inputs"].get("filename_prefix", "")) for node, entry in graph.items()}
    last = {node: prefix.rpartition("/")[2] for node, prefix in prefixes.items()}
    return {node: word for node, word in last.items() if word in SAVED}


def caption(path: Path) -> dict[str, str]:
    text = path.with_suffix(".txt")
    return {"caption": text.read_text(encoding="utf-8").strip() if text.is_file() else ""}


def read_picture(path: Path, size: Sequence[int]) -> Tensor:
    """uint8 h w 3, scaled to cover and cropped."""
    try:
        with Image.open(path) as picture:
            return fit_map(torch.from_numpy(np.array(picture.convert("RGB"))), tuple(size), smooth=True)
    except OSError as error:
        raise RunFailed(f"it cannot be read ({error})") from error


def estimate(server: Server, graph: Mapping[str, Any], image: Tensor, upload: str) -> dict[str, Tensor]:
    """One picture's row of a shard."""
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "PNG")
    server.upload(upload, buffer.getvalue())
    first = next(node for node, entry in graph.items() if entry["class_type"] == "LoadImage")
    inputs = graph[first]["inputs"] | {"image": upload}
    outputs = server.run({**graph, first: {**graph[first], "inputs": inputs}})
    files: dict[str, list[bytes]] = {}
    for node, word in find_savers(graph).items():
        listed = [file for group in outputs.get(node, {}).values() for file in group if isinstance(file, dict) and "filename" in file]
        files.setdefault(word, []).extend(server.fetch(file) for file in listed)
    return assemble(image, files)


def assemble(image: Tensor, files: Mapping[str, Sequence[bytes]]) -> dict[str, Tensor]:
    """The picture h w 3 and the saved files of each map as a row of a shard; ValueError where a map has another size."""
    row, sky = {"image": image}, None
    if files.get("depth"):
        view = read_view(files["depth"][0])
        row["depth"], sky = view.depth[0], None if view.sky is None else view.sky[0]
        if view.normals is not None:
            row["normals"] = as_integers(view.normals[0])
    if files.get("normals"):
        row["normals"] = as_integers(open_picture(files["normals"][0], read_normals))
    if "segmentation" in files:
        ids = number_masks([open_picture(mask, read_line) for mask in files["segmentation"]], image.shape[:2])
        row["segmentation"] = ids if sky is None or sky.shape != ids.shape else ids.masked_fill(sky & (ids == 0), SKY)
    if files.get("line"):
        row["line"] = open_picture(files["line"][0], read_line).half()
    for name, value in row.items():
        if value.shape[:2] != image.shape[:2]:
            got, wanted = "x".join(map(str, value.shape[1::-1])), "x".join(map(str, image.shape[1::-1]))
            raise ValueError(f"The workflow made a {name} of {got} pixels for a picture of {wanted}; keep the picture's size in it.")
    return row


def read_view(data: bytes) -> View:
    """The geometry of an NPZ; its normals measured from the depth where it has a camera and none."""
    with tempfile.TemporaryDirectory() as folder:
        view = read_npz(write_file(Path(folder) / "view.npz", data))
    return view if view.normals is not None or view.intrinsics is None else view_with_normals(view)


def open_picture(data: bytes, read) -> Tensor:
    with Image.open(io.BytesIO(data)) as picture:
        return read(picture)


def as_integers(normals: Tensor) -> Tensor:
    return (normals * INTEGER_NORMAL).round().to(torch.int8)


def number_masks(masks: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Masks h w in [0, 1] as one map of numbers, int16 h w; smaller ones lie on top of larger."""
    for mask in masks:
        if mask.shape != tuple(size):
            raise ValueError(f"The workflow made a mask of {tuple(mask.shape)} pixels for a picture of {tuple(size)}; keep its size in it.")
    return masks_to_ids(torch.stack(list(masks))).to(torch.int16) if masks else torch.zeros(*size, dtype=torch.int16)


def stack_samples(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows to a shard's tensors; what one row lacks and others have is zero in it, which for depth and normals is not known."""
    names = sorted({name for sample in samples for name in sample})
    like = {name: next(sample[name] for sample in samples if name in sample) for name in names}
    return {name: torch.stack([sample.get(name, torch.zeros_like(like[name])) for sample in samples]) for name in names}
