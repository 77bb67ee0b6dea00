"""A dataset folder with intrinsic maps from plain images, with the estimators of a running ComfyUI.

`spatialweave intrinsics build`: each image is resized and cropped to one size and fed to the first Load Image
of a workflow in API form; the files that the workflow saves are collected. The last path component of a
saver's `filename_prefix` names the map: .../depth is an NPZ of Save Depth, with sky and normals where the
estimator returns them; .../normals a normal map in OpenGL's colors, which takes precedence; .../segmentation
one image per mask; .../line white on black. A .txt of the same name beside an image is its caption.

Shards hold image uint8, depth float32 (0 = unknown), normals int8 (127 times the unit normal, 0 = unknown),
segmentation int16 (0 = no mask, -1 = sky), line float16; `dataset.py` reads them. An image is skipped, and
named in the log and at the end, if it or its caption cannot be read or the workflow fails on it; a shard on
which the workflow fails for every image ends the run.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ...core.export.files import write_file
from ...core.export.npz import read_npz
from ...core.geometry.normals import view_with_normals
from ...core.geometry.view import View
from ...core.picture_files import PictureError
from ...core.pictures import open_gray, open_rgb
from ...core.text_files import TextFileError, read_json_object, show_path
from ...core.training.data import fit_map
from ...core.training.data_files import SKY
from ...core.training.shard_sources import Source, shown
from ...core.training.shard_writer import Summary, write_folder
from ..maps.segmentation import masks_to_ids
from .dataset import INTEGER_NORMAL, read_normals
from .pictures import IMAGES, as_source, list_images
from .server import RunFailed, Server

log = logging.getLogger("spatialweave.dataset")

FORMAT, VERSION = "spatialweave-intrinsics", 2
WORKFLOW = Path(__file__).parents[3] / "workflows" / "api" / "build_intrinsic_dataset.json"
SAVED = ("depth", "normals", "segmentation", "line")
LARGEST = 2**28  # pixels of an image after it is scaled to cover, before the crop


def build_dataset(
    source: str | Path, output: str | Path, *, servers: Sequence[str], size: Sequence[int] = (512, 512),
    workflow: str | Path = WORKFLOW,
    changes: Sequence[str] = (), shard_size: int = 64, timeout: float = 600,
) -> Summary:  # fmt: skip
    """Estimate the maps of every image below `source`.

    `size` is (height, width); `changes` are NODE.INPUT=VALUE for the workflow. Each process uses its own one
    of the `servers`, in turn if there are fewer servers than processes.
    """
    source, output = Path(source), Path(output)
    images = find_images(source)
    graph = read_graph(Path(workflow), changes)
    facts = {
        "format": FORMAT, "version": VERSION, "size": list(size), "workflow": find_settings(graph),
        "about": {"source": show_path(source.resolve().name), "workflow": show_path(Path(workflow).name)},
    }  # fmt: skip
    task = Estimation(graph, tuple(size))

    def write(name: str, members: Sequence[Source], state) -> list[str]:
        server = Server(servers[state.process_index % len(servers)], seconds=timeout)
        samples, left_out, asked = [], [], False
        for member in members:
            fault = member.fault
            try:
                if not fault:
                    image = task.read(source / member.name, shown(member.name))
                    asked = True
                    samples.append(task.estimate(server, image))
            except (PictureError, RunFailed) as error:
                fault = str(error)
            except ValueError as error:
                raise ValueError(f"{shown(member.name)}: {error}") from error
            if fault:
                log.warning("%s is left out: %s", shown(member.name), fault)
            left_out.append(fault)
        if asked and not samples:
            raise ValueError(
                f"Expected the workflow to succeed on one of {len(members)} images from "
                f"{shown(members[0].name)} on, got an error for each; the last: {fault}. Correct the "
                "workflow."
            )
        if samples:
            write_file(output / f"{name}.safetensors", save(stack_samples(samples)))
        return left_out

    return write_folder(
        output, facts, sources=images, shard_size=shard_size, write=write, what="intrinsics"
    )


def find_images(folder: Path) -> list[Source]:
    """The images below a folder; ValueError if there are none. Skipped files are reported in the log."""
    listing = list_images(folder)
    for closed in listing.closed if folder.is_dir() else ():
        log.warning("%s is left out: the folder cannot be read; change its permissions.", show_path(closed))
    hidden = (
        f"{listing.hidden} images whose names begin with a dot, or in __MACOSX, are left out"
        if listing.hidden
        else ""
    )
    if not listing.images:
        more = f" ({hidden})" if hidden else ""
        raise ValueError(
            f"Expected images ({', '.join(IMAGES)}) in a folder {show_path(folder)}, got none{more}. Name "
            "another folder."
        )
    if hidden:
        log.info("%s.", hidden)
    return [as_source(folder, *pair) for pair in listing.images]


class Estimation:
    """Estimation of the maps of one image after another."""

    def __init__(self, graph: Mapping[str, Any], size: tuple[int, int]):
        self.graph, self.size, self.savers = graph, size, find_savers(graph)
        # one upload per process on the server, overwritten for each image
        self.upload = f"spatialweave_{uuid.uuid4().hex[:12]}.png"
        self.logged: set[str] = set()

    def read(self, path: Path, name: str) -> Tensor:
        """uint8 (h, w, 3), scaled to cover and cropped. Each distinct note of the reader is logged once."""
        image, notes = read_cropped_image(path, self.size)
        for note in notes:
            if note not in self.logged:
                self.logged.add(note)
                log.info("%s: %s (Logged once; it may hold for others.)", name, note)
        return image

    def estimate(self, server: Server, image: Tensor) -> dict[str, Tensor]:
        """One image's row of a shard."""
        buffer = io.BytesIO()
        Image.fromarray(image.numpy()).save(buffer, "PNG")
        server.upload(self.upload, buffer.getvalue())
        first = find_input(self.graph)
        inputs = self.graph[first]["inputs"] | {"image": self.upload}
        outputs = server.run({**self.graph, first: {**self.graph[first], "inputs": inputs}})
        files: dict[str, list[bytes]] = {}
        for node, map_name in self.savers.items():
            listed = list_files(outputs.get(node))
            if not listed and map_name != "segmentation":  # an image may have no masks
                raise RunFailed(f"node {node} ({self.graph[node]['class_type']}) saved no {map_name}")
            files.setdefault(map_name, []).extend(server.fetch(file) for file in listed)
        return assemble(image, files)


def find_settings(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that determine the maps: the graph without node titles and without its input image."""
    settings = {
        node: {"class_type": entry["class_type"], "inputs": dict(entry["inputs"])}
        for node, entry in graph.items()
    }
    settings[find_input(graph)]["inputs"].pop("image", None)
    return settings


def find_input(graph: Mapping[str, Any]) -> str:
    """Id of the node that loads the image."""
    return next(node for node, entry in graph.items() if entry["class_type"] == "LoadImage")


def list_files(output: Any) -> list[Mapping[str, str]]:
    """The files listed in a node's entry in the history."""
    groups = (
        [group for group in output.values() if isinstance(group, list)] if isinstance(output, dict) else []
    )
    return [file for group in groups for file in group if isinstance(file, dict) and "filename" in file]


def read_graph(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    """A workflow in API form with changed inputs; ValueError if it has no Load Image or saves no map."""
    try:
        graph = read_json_object(path)
    except (OSError, TextFileError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"Expected a workflow in API form in {show_path(path)}, got a file that cannot be read "
            f"({reason}). Export one from ComfyUI."
        ) from error
    if "nodes" in graph:
        raise ValueError(
            f"Expected a workflow in API form in {show_path(path)}, got one as the browser saves it. Export "
            "it in API form."
        )
    for number, node in graph.items():
        if (
            not isinstance(node, dict)
            or not isinstance(node.get("inputs"), dict)
            or not isinstance(node.get("class_type"), str)
        ):
            raise ValueError(
                f"Expected nodes with class_type and inputs in {show_path(path)}, got another entry "
                f"{number!r}. Export it in API form."
            )
    for change in changes:
        target, has_value, value = change.partition("=")
        node, _, name = target.partition(".")
        if not has_value or name not in graph.get(node, {}).get("inputs", {}):
            raise ValueError(
                f"Expected --set NODE.INPUT=VALUE with an input of {path.name}, got {target!r}. Choose one "
                "that the workflow has."
            )
        try:
            graph[node]["inputs"][name] = json.loads(value)
        except ValueError:
            graph[node]["inputs"][name] = value
    if not any(node["class_type"] == "LoadImage" for node in graph.values()) or not find_savers(graph):
        raise ValueError(
            f"Expected a Load Image in {show_path(path.name)} and a saving node whose filename_prefix ends "
            f"in one of {', '.join(SAVED)}, got neither or one of them. Start from workflows/{WORKFLOW.name}."
        )
    return graph


def find_savers(graph: Mapping[str, Any]) -> dict[str, str]:
    """The map that each saving node saves, by node id."""
    prefixes = {node: str(entry["inputs"].get("filename_prefix", "")) for node, entry in graph.items()}
    last = {node: prefix.rpartition("/")[2] for node, prefix in prefixes.items()}
    return {node: name for node, name in last.items() if name in SAVED}


def read_cropped_image(path: Path, size: Sequence[int]) -> tuple[Tensor, tuple[str, ...]]:
    """uint8 (h, w, 3), scaled to cover and cropped, and the reader's notes; PictureError for a bad file."""
    image, notes = open_rgb(path)
    height, width = image.shape[:2]
    if height * width * max(size[0] / height, size[1] / width) ** 2 > LARGEST:
        raise PictureError(
            f"Expected an image that can cover {size[1]} x {size[0]} pixels in {show_path(path)}, got "
            f"{width} x {height}."
        )
    try:
        return fit_map(image, tuple(size), smooth=True), notes
    except RuntimeError as error:  # torch raises this when memory is exhausted
        raise PictureError(
            f"Expected an image that fits into memory in {show_path(path)}, got {width} x {height}."
        ) from error


def assemble(image: Tensor, files: Mapping[str, Sequence[bytes]]) -> dict[str, Tensor]:
    """The image (h, w, 3) and the saved files of each map as a shard's row; ValueError if sizes differ."""
    row, sky = {"image": image}, None
    if files.get("depth"):
        view = read_view(files["depth"][0])
        row["depth"], sky = view.depth[0], None if view.sky is None else view.sky[0]
        if view.normals is not None:
            row["normals"] = as_integers(view.normals[0])
    if files.get("normals"):
        row["normals"] = as_integers(read_saved(read_normals, files["normals"][0], "normals"))
    if "segmentation" in files:
        ids = number_masks(
            [read_saved(open_gray, mask, "segmentation") for mask in files["segmentation"]], image.shape[:2]
        )
        row["segmentation"] = (
            ids if sky is None or sky.shape != ids.shape else ids.masked_fill(sky & (ids == 0), SKY)
        )
    if files.get("line"):
        row["line"] = read_saved(open_gray, files["line"][0], "line").half()
    for name, value in row.items():
        if value.shape[:2] != image.shape[:2]:
            got, size = (" x ".join(map(str, x.shape[1::-1])) for x in (value, image))
            raise ValueError(
                f"Expected {name} of the image's {size} pixels from the workflow, got {got}. Keep the "
                "image's size in the workflow."
            )
    return row


def read_view(data: bytes) -> View:
    """The geometry of an NPZ; normals are computed from the depth if the file has a camera but no normals."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(Path(folder) / "view.npz", data)
        try:
            view = read_npz(path)
        except (OSError, ValueError) as error:
            reason = str(error).replace(str(path), "the saved file")
            raise RunFailed(f"the workflow saved a depth that is no NPZ of Save Depth ({reason})") from error
    return view if view.normals is not None or view.intrinsics is None else view_with_normals(view)


def read_saved(read: Callable[..., Any], data: bytes, map_name: str) -> Any:
    """An image that the workflow saved; RunFailed if it is not an image."""
    try:
        return read(data, name=f"the {map_name} that the workflow saved")
    except PictureError as error:
        raise RunFailed(str(error)) from error


def as_integers(normals: Tensor) -> Tensor:
    return (normals * INTEGER_NORMAL).round().to(torch.int8)


def number_masks(masks: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Masks (h, w) in [0, 1] as one id map (h, w), int16; smaller masks lie on top of larger ones."""
    for mask in masks:
        if mask.shape != tuple(size):
            raise ValueError(
                f"Expected masks of the image's {tuple(size)} pixels (h, w) from the workflow, got "
                f"{tuple(mask.shape)}. Keep the image's size in the workflow."
            )
    return (
        masks_to_ids(torch.stack(list(masks))).to(torch.int16)
        if masks
        else torch.zeros(*size, dtype=torch.int16)
    )


def stack_samples(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows as a shard's tensors; a map that a row lacks is zero in it: unknown depth or normals."""
    names = sorted({name for sample in samples for name in sample})
    like = {name: next(sample[name] for sample in samples if name in sample) for name in names}
    return {
        name: torch.stack([sample.get(name, torch.zeros_like(like[name])) for sample in samples])
        for name in names
    }
