"""The command `spatialweave benchmark`: published depth and pose benchmarks with any model."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .option_types import LARGEST_SEED, MOST_STEPS, check_device, number, path, whole
from .output_lines import write_line

_ALIGNMENTS = ("none", "scale", "scale-robust", "scale-shift", "scale-shift-robust", "disparity-scale-shift")
_DEFAULTS = {
    "size": 0, "device": "cpu", "set": [], "server": "http://127.0.0.1:8188", "timeout": 3600, "seed": 0,
    "steps": 0, "ensemble": 1,
}  # fmt: skip


def add_benchmark(command: argparse.ArgumentParser) -> None:
    tasks = command.add_subparsers(dest="task", metavar="TASK", required=True)
    looks = {"formatter_class": command.formatter_class}
    depth = tasks.add_parser("depth", help="AbsRel, delta1 and RMSE beside the published figures", **looks)
    _add_depth(depth)
    pose = tasks.add_parser("pose", help="AUC@5, @10 and @30 beside the published figures", **looks)
    _add_pose(pose)


def _add_common(option, models: tuple[str, ...], unit: str) -> None:
    option("folder", type=path, help="the dataset's folder; for depth also a folder of several datasets")
    model = option("--model", required=True, choices=models)
    model.help = "what predicts: a network in this process, or a graph in a running ComfyUI"
    option("--weights", type=path, help="a network's file, where not the shipped tiny one")
    option("--size", type=whole(0, 8192), help="longer side of the network's input; 0: its own")
    option("--device", help="where the network runs: cpu, cuda")
    option("--graph", type=path, help="comfyui: a graph in API form with one Load Image")
    changes = option("--set", action="append", metavar="NODE.INPUT=VALUE")
    changes.help = "comfyui: change an input of the graph; may be repeated"
    option("--image-node", help="comfyui: the Load Image node, if the graph has several")
    option("--server", help="comfyui: the address of the server")
    option("--timeout", type=number(1, 10**6), help="comfyui: seconds for one run")
    option("--name", help="what the table calls the model")
    dataset = option("--dataset", help="NYUv2, KITTI, ...: whose figures to compare with")
    dataset.help += "; by default the folder's name"
    option("--seed", type=whole(0, LARGEST_SEED), help="of sampling, and of the choice of frames")
    option("--n", type=whole(1, 10**7), help=f"only the first N {unit}")
    work = option("--work", type=path, help="file of results so far; a rerun continues from it")
    work.help += ", of several datasets a folder (default: under runs/benchmark, by model and settings)"
    option("--json", type=path, help="also write the figures to this file")
    option("--markdown", type=path, help="also write the table to this file")


def _add_depth(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    _add_common(option, ("modality_forcing", "vggt", "comfyui"), "images")
    layout = option("--layout", choices=["moge", "marigold", "dataset", "folder"])
    layout.help = "of the folder; by default found by its files"
    option("--list", type=path, help="marigold: the list of files, from its data_split")
    scale = option("--scale", type=number(1e-9, 1e6))
    scale.help = "folder: metres of a number in depth PNGs that do not state it, such as 0.001"
    alignment = option("--alignment", action="append", choices=_ALIGNMENTS)
    alignment.help = "may be repeated (default: scale, scale-shift and scale-shift-robust)"
    option("--steps", type=whole(0, MOST_STEPS), help="modality_forcing: 0 is the preset's")
    ensemble = option("--ensemble", type=whole(1, 100))
    ensemble.help = "predictions of each image, aligned and averaged; the published figures have 10"
    command.set_defaults(run=_run_depth, **_DEFAULTS)


def _add_pose(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    _add_common(option, ("vggt", "comfyui"), "scenes")
    option("--frames", type=whole(2, 200), default=10, help="frames of each scene, at random")
    command.set_defaults(run=_run_pose, **_DEFAULTS)


def _run_depth(options: argparse.Namespace) -> None:
    from ..benchmarks.depth_folders import find_depth_folders, open_depth_folder
    from ..benchmarks.depth_run import depth_table, run_depth_benchmark, several_table

    found = {"layout": options.layout, "dataset": options.dataset}
    found |= {"file_list": options.list, "scale": options.scale}
    # a list, a layout or a dataset's name is that of one dataset
    stated = options.list or options.layout or options.dataset
    places = [options.folder] if stated else find_depth_folders(options.folder)
    if options.layout:
        _check_folder_options(options, [options.layout])
    folders = [open_depth_folder(place, **found) for place in places]
    _check_folder_options(options, [folder.layout for folder in folders])
    predictor = _depth_predictor(options)
    alignments = options.alignment or ["scale", "scale-shift", "scale-shift-robust"]
    alignments = tuple(dict.fromkeys(alignments))
    results = []
    for folder in folders:
        work = _depth_work(folder.dataset, len(folders), options, predictor, alignments)
        settings = {"limit": options.n, "progress": _progress("image")}
        results.append(run_depth_benchmark(folder, predictor, alignments, work, **settings))
    if len(results) == 1:
        return _finish(results[0], depth_table(results[0]), options)
    return _finish(results, several_table(results), options)


def _depth_work(dataset: str, count: int, options: argparse.Namespace, predictor: Any, more: Any) -> Path:
    """The work file of a dataset; of several, `--work` is the folder of their files."""
    if options.work is None:
        return _work_file(dataset, options, predictor, more)
    return options.work if count == 1 else options.work / f"{dataset}.jsonl"


def _run_pose(options: argparse.Namespace) -> None:
    from ..benchmarks.pose_folders import open_pose_folder
    from ..benchmarks.pose_run import pose_table, run_pose_benchmark

    chosen = {"frames": options.frames, "seed": options.seed}
    folder = open_pose_folder(options.folder, dataset=options.dataset, **chosen)
    predictor = _pose_predictor(options)
    work = options.work or _work_file(folder.dataset, options, predictor, options.frames)
    result = run_pose_benchmark(
        folder, predictor, work, limit=options.n, progress=_progress("scene"), **chosen
    )
    _finish(result, pose_table(result), options)


def _depth_predictor(options: argparse.Namespace) -> Any:
    _check_options(options)
    if options.model == "comfyui":
        from ..benchmarks.comfyui_graph import GraphDepth

        return GraphDepth(*_graph(options), **_graph_options(options), ensemble=options.ensemble)
    from ..benchmarks.predictors import ModalityForcingDepth, VggtDepth

    common = {"size": options.size, "device": check_device(options.device)}
    if options.model == "vggt":
        predictor = VggtDepth(options.weights, **common)
    else:
        sampling = {"steps": options.steps, "seed": options.seed, "ensemble": options.ensemble}
        predictor = ModalityForcingDepth("tiny", options.weights, **common, **sampling)
    predictor.name = options.name or predictor.name
    return predictor


def _pose_predictor(options: argparse.Namespace) -> Any:
    _check_options(options)
    if options.model == "comfyui":
        from ..benchmarks.comfyui_graph import GraphPoses

        return GraphPoses(*_graph(options), **_graph_options(options))
    from ..benchmarks.predictors import VggtPoses

    predictor = VggtPoses(options.weights, size=options.size, device=check_device(options.device))
    predictor.name = options.name or predictor.name
    return predictor


def _check_options(options: argparse.Namespace) -> None:
    """ValueError for an option that would do nothing."""
    if options.model == "comfyui" and options.graph is None:
        raise ValueError("Expected a graph for --model comfyui, got none. Give its API form with --graph.")
    idle = ["weights", "size", "steps", "device"]
    if options.model != "comfyui":
        idle = ["graph", "set", "image_node", "server", "timeout"]
        if options.model == "vggt":  # the seed of a pose benchmark chooses its frames
            idle += ["steps", "ensemble"] + (["seed"] if options.task == "depth" else [])
    for name in idle:
        if getattr(options, name) != _DEFAULTS.get(name):
            option = name.replace("_", "-")
            raise ValueError(f"Expected no --{option} for --model {options.model}, got one. Leave it out.")


def _check_folder_options(options: argparse.Namespace, layouts: Iterable[str]) -> None:
    """ValueError for an option of another layout than the folders'."""
    shown = " and ".join(sorted(set(layouts)))
    for option, value, layout in (("list", options.list, "marigold"), ("scale", options.scale, "folder")):
        if value is not None and layout not in layouts:
            raise ValueError(
                f"Expected no --{option} for the layout {shown}, got one: it is for {layout}. Leave it out."
            )


def _graph(options: argparse.Namespace) -> tuple[Any, Any]:
    from ..benchmarks.comfyui_graph import ComfyServer, read_api_graph

    server = ComfyServer(options.server, seconds=options.timeout)
    return server, read_api_graph(options.graph, options.set)


def _graph_options(options: argparse.Namespace) -> dict[str, Any]:
    name = options.name or f"ComfyUI ({options.graph.stem})"
    return {"name": name, "image_node": options.image_node, "seed": options.seed}


def _work_file(dataset: str, options: argparse.Namespace, predictor: Any, more: Any) -> Path:
    """A name of its own for each set of settings, so that none meets another's results."""
    source = str(options.folder.resolve())
    settings = json.dumps([predictor.name, dict(predictor.settings), more, options.seed, source])
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    return Path("runs/benchmark") / f"{options.task}_{dataset}_{options.model}_{digest}.jsonl"


def _progress(unit: str):
    from tqdm import tqdm

    return lambda names: tqdm(names, desc="benchmark", unit=unit, disable=None)


def _finish(
    result: dict[str, Any] | list[dict[str, Any]], table: list[str], options: argparse.Namespace
) -> None:
    from ..benchmarks.depth_run import save_result
    from ..core.export.files import write_file

    for line in table:
        write_line(line)
    if options.json:
        save_result(options.json, result)
    if options.markdown:
        write_file(options.markdown, ("\n".join(table) + "\n").encode("utf-8"))
