"""Any ComfyUI graph in API form as a predictor: images go up, depth or poses come back as files, by HTTP."""

from __future__ import annotations

import copy
import json
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.evaluation.benchmark import average_predictions
from ..core.export.depth_files import SUFFIXES, read_depth
from ..core.export.png8 import encode_png8
from ..core.geometry.view import View
from ..core.text_files import read_text, show_path
from .colmap_model import parse_images

Graph = dict[str, dict[str, Any]]
TIMEOUT = 60.0  # seconds for one answer of the server
SAVE_DEPTH = {"format": "exr", "png_scale": 0.0, "exr_picture": False, "filename_prefix": "benchmark/depth"}
FUSE = {
    "every": 1, "min_confidence": 0.0, "drop_percent": 0.0, "edge_threshold": 0.0, "tolerance": 0.0,
    "min_views": 1, "voxel_size": 0.0, "max_points": 1000, "fov_degrees": 65.0,
}  # fmt: skip
SAVE_POSES = {
    "filename_prefix": "benchmark/poses", "layout": "colmap", "units": "as they are", "max_points": 1000,
}  # fmt: skip


class ComfyServer:
    """The requests of ComfyUI's HTTP interface that a benchmark needs; ValueError says what went wrong."""

    def __init__(self, url: str, *, seconds: float = 3600.0) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.seconds = seconds

    def ask(self, path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
        headers = {"Content-Type": kind} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[:600].rstrip(".")
            raise ValueError(
                f"Expected ComfyUI at {self.url} to accept {path.split('?')[0]}, got a refusal: {said}. "
                "Correct the graph."
            ) from error
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Expected a ComfyUI at {self.url}, got no answer ({getattr(error, 'reason', error)}). Start "
                "one, or state --server."
            ) from error

    def upload(self, image: Tensor) -> str:
        """An image (h, w, 3) into the input folder; its name there."""
        name, edge = f"benchmark_{uuid.uuid4().hex}.png", uuid.uuid4().hex
        head = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png'
        body = f"--{edge}\r\n{head}\r\n\r\n".encode() + encode_png8(image) + f"\r\n--{edge}--\r\n".encode()
        answer = json.loads(self.ask("/upload/image", body, f"multipart/form-data; boundary={edge}"))
        return "/".join(filter(None, (answer.get("subfolder"), answer["name"])))

    def run(self, graph: Graph) -> dict[str, Any]:
        """Outputs by node of a graph that has run."""
        queued = json.loads(self.ask("/prompt", json.dumps({"prompt": graph}).encode()))
        number, deadline = queued["prompt_id"], time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            entry = json.loads(self.ask(f"/history/{number}")).get(number, {})
            status = entry.get("status") or {}
            if status.get("completed"):
                return entry["outputs"]
            if status.get("status_str") == "error":
                reason = _reason(status.get("messages") or [])
                raise ValueError(f"Expected the graph to run, got an error: {reason} Correct the graph.")
            time.sleep(0.1)
        raise ValueError(f"Expected the graph to end within {self.seconds:g} s, got none. Raise --timeout.")

    def fetch(self, entry: Mapping[str, str], folder: Path) -> Path:
        """A file of an output into a folder."""
        query = urllib.parse.urlencode({key: entry.get(key, "") for key in ("filename", "subfolder", "type")})
        path = folder / Path(entry["filename"]).name
        path.write_bytes(self.ask(f"/view?{query}"))
        return path


def _reason(messages: Sequence) -> str:
    for kind, data in messages:
        if kind == "execution_error":
            return f"{data.get('node_type')}: {str(data.get('exception_message')).strip().rstrip('.')}."
    return "It was interrupted."


def read_api_graph(path: Path, changes: Sequence[str] = ()) -> Graph:
    """A graph in API form, with inputs changed by NODE.INPUT=VALUE."""
    try:
        graph = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(
            f"Expected a graph in API form in {show_path(path)}, got no JSON ({error}). Choose another file."
        ) from error
    if not isinstance(graph, dict) or not all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in graph.values()
    ):
        raise ValueError(
            f"Expected a graph in API form in {show_path(path)}, got another JSON. Save it in ComfyUI with "
            "Export (API)."
        )
    for change in changes:
        place, equals, value = change.partition("=")
        node, _, name = place.partition(".")
        if not equals or name not in graph.get(node, {}).get("inputs", {}):
            raise ValueError(
                f"Expected NODE.INPUT=VALUE of the graph {show_path(path)}, got {change!r}. Look the "
                "names up in the file."
            )
        try:
            graph[node]["inputs"][name] = json.loads(value)
        except ValueError:
            graph[node]["inputs"][name] = value
    return graph


def find_image_node(graph: Graph, stated: str | None = None) -> str:
    """The Load Image node whose image a benchmark sets."""
    found = [stated] if stated else [n for n, node in graph.items() if node["class_type"] == "LoadImage"]
    if len(found) != 1 or found[0] not in graph:
        raise ValueError(
            f"Expected one Load Image node in the graph, got {', '.join(found) or 'none'}. State which with "
            "--image-node."
        )
    return found[0]


def _free_id(graph: Graph) -> str:
    return str(max((int(name) for name in graph if name.isdigit()), default=0) + 1)


def with_saver(graph: Graph) -> Graph:
    """The graph with a Save Depth node on the VIEW that it shows, if it saves no depth itself."""
    if any(node["class_type"] == "SpatialWeave_SaveDepth" for node in graph.values()):
        return graph
    shown = [n["inputs"]["view"] for n in graph.values() if n["class_type"] == "SpatialWeave_PreviewDepth"]
    if not shown:
        raise ValueError(
            "Expected a Save Depth or Preview Depth node in the graph, got neither. Add Save Depth to the "
            "VIEW that is to be scored."
        )
    node = {"class_type": "SpatialWeave_SaveDepth", "inputs": {"view": shown[0], **SAVE_DEPTH}}
    return graph | {_free_id(graph): node}


def set_seeds(graph: Graph, seed: int) -> Graph:
    """Every widget named seed or noise_seed set."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        for name in ("seed", "noise_seed"):
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = seed
    return graph


class GraphDepth:
    """Depth of each image by a graph with one Load Image node."""

    def __init__(
        self,
        server: ComfyServer,
        graph: Graph,
        *,
        name: str,
        image_node: str | None = None,
        seed: int = 0,
        ensemble: int = 1,
    ) -> None:
        self.server, self.graph, self.name = server, with_saver(graph), name
        self.image_node = find_image_node(graph, image_node)
        self.seed, self.ensemble = seed, ensemble
        self.settings = {"graph": graph, "seed": seed, "ensemble": ensemble}

    def __call__(self, image: Tensor, index: int) -> View:
        name = self.server.upload(image)
        seeds = range(self.seed + index * self.ensemble, self.seed + (index + 1) * self.ensemble)
        return average_predictions([self._predict(name, seed) for seed in seeds])

    def _predict(self, name: str, seed: int) -> View:
        graph = set_seeds(self.graph, seed)
        graph[self.image_node]["inputs"]["image"] = name
        outputs = self.server.run(graph)
        savers = [n for n, node in graph.items() if node["class_type"] == "SpatialWeave_SaveDepth"]
        kinds = ("files", "images")
        files = [file for n in savers for kind in kinds for file in outputs.get(n, {}).get(kind, ())]
        files = [file for file in files if file["filename"].lower().endswith(SUFFIXES)]
        if not files:
            raise ValueError("Expected a depth file from the graph's Save Depth, got none. Check the graph.")
        with tempfile.TemporaryDirectory() as folder:
            return read_depth(self.server.fetch(files[0], Path(folder)))


class GraphPoses:
    """Poses of several images by a graph with one Load Image node, which becomes a batch of them."""

    def __init__(
        self,
        server: ComfyServer,
        graph: Graph,
        *,
        name: str,
        image_node: str | None = None,
        seed: int = 0,
    ) -> None:
        self.server, self.name = server, name
        self.image_node = find_image_node(graph, image_node)
        self.graph = set_seeds(with_pose_saver(graph), seed)
        self.settings = {"graph": graph, "seed": seed}

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        graph = with_batch(self.graph, self.image_node, [self.server.upload(image) for image in images])
        outputs = self.server.run(graph)
        files = [file for output in outputs.values() for file in output.get("files", ())]
        texts = [file for file in files if file["filename"] == "images.txt"]
        if not texts:
            raise ValueError("Expected images.txt from the graph's Save COLMAP, got none. Check the graph.")
        with tempfile.TemporaryDirectory() as folder:
            poses = parse_images(self.server.fetch(texts[0], Path(folder)))
        if len(poses) != len(images):
            raise ValueError(
                f"Expected {len(images)} poses from the graph, got {len(poses)}. Fuse every view."
            )
        return torch.stack([pose for _, pose in sorted(poses.items())])


def with_pose_saver(graph: Graph) -> Graph:
    """The graph with Fuse Views and Save COLMAP on the VIEW that it shows, if it saves no poses itself."""
    if any(node["class_type"] == "SpatialWeave_SaveColmap" for node in graph.values()):
        return graph
    shown = [n["inputs"]["view"] for n in graph.values() if n["class_type"] == "SpatialWeave_PreviewDepth"]
    if not shown:
        raise ValueError(
            "Expected a Save COLMAP or Preview Depth node in the graph, got neither. Add one to the views "
            "that are to be scored."
        )
    graph = dict(graph)
    fuse = _free_id(graph)
    graph[fuse] = {"class_type": "SpatialWeave_FuseViews", "inputs": {"view": shown[0], **FUSE}}
    graph[_free_id(graph)] = {
        "class_type": "SpatialWeave_SaveColmap",
        "inputs": {"cloud": [fuse, 1], **SAVE_POSES},
    }
    return graph


def with_batch(graph: Graph, image_node: str, names: Sequence[str]) -> Graph:
    """The graph with a batch of images in place of those of one Load Image node."""
    graph = copy.deepcopy(graph)
    users = [
        (node, key)
        for node, entry in graph.items()
        for key, value in entry["inputs"].items()
        if value == [image_node, 0]
    ]
    graph[image_node]["inputs"]["image"] = names[0]
    batch = [image_node, 0]
    for name in names[1:]:
        loader = _free_id(graph)
        graph[loader] = {"class_type": "LoadImage", "inputs": {"image": name}}
        joined = _free_id(graph)
        graph[joined] = {"class_type": "ImageBatch", "inputs": {"image1": batch, "image2": [loader, 0]}}
        batch = [joined, 0]
    for node, key in users:
        graph[node]["inputs"][key] = batch
    return graph
