"""Checkpoints: a folder of safetensors and one JSON file, written atomically and found by a pointer file.

    OUTPUT/latest.json            {"checkpoint": "step-00003000"}
    OUTPUT/step-00003000/         model.safetensors  ema.safetensors  optimizer.safetensors  state.json

There is no random state to save: all random numbers of a run are a function of (seed, step, slice), see
`loop.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..export.files import write_file
from ..text_files import read_json_object
from ..weights.files import WeightsError, read_tensors

POINTER = "latest.json"
STATE = "state.json"


def save_checkpoint(
    root: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write `<group>.safetensors` for each group and state.json, move the pointer, delete all but the last
    `keep`. Returns the folder.
    """
    folder = root / f"step-{step:08d}"
    part = folder.with_suffix(".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, tensors in groups.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
                part / f"{name}.safetensors",
            )
        write_json(part / STATE, {"step": step, **state})
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
        write_json(root / POINTER, {"checkpoint": folder.name})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"Expected room for the checkpoint {folder}, got an error while writing it: {error}. Free some "
            "space or choose another output folder."
        ) from error
    for old in sorted(p for p in root.glob("step-????????") if p.name < folder.name)[: -(keep - 1) or None]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def find_latest(root: Path) -> Path | None:
    """The folder in the pointer file, or None if no checkpoint was written."""
    pointer = root / POINTER
    if not pointer.is_file():
        return None
    folder = root / str(read_state(pointer).get("checkpoint"))
    if not (folder / STATE).is_file():
        raise ValueError(
            f"Expected {STATE} in the checkpoint {folder.name}, which {pointer} names, got none. Name a "
            "checkpoint that has it."
        )
    return folder


def load_checkpoint(
    folder: Path, names: tuple[str, ...]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The named groups of tensors, on the CPU, and the state."""
    groups = {}
    for name in names:
        try:
            groups[name] = read_tensors(folder / f"{name}.safetensors")
        except WeightsError as error:
            reason = str(error).removesuffix(".")
            raise ValueError(
                f"Expected {folder / name}.safetensors to be readable, got a damaged or missing file "
                f"({reason}). Use an older checkpoint."
            ) from error
    return groups, read_state(folder / STATE)


def load_model(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Strictly: a missing, unknown or differently shaped tensor is a ValueError."""
    own = model.state_dict()
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shapes = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    faults = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    if any(faults.values()):
        differences = [f"{len(group)} {what} (first {group[0]})" for what, group in faults.items() if group]
        raise ValueError(
            f"Expected the tensors of this model in {source}, got {', '.join(differences)}. Use the model "
            "and preset of the run that wrote it."
        )
    model.load_state_dict(dict(tensors))


def read_state(path: Path) -> dict[str, Any]:
    """One of a checkpoint's JSON files; ValueError if it cannot be read."""
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected {path} to be readable, got a damaged or missing file ({error}). Use an older "
            "checkpoint."
        ) from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """One object, indented, written whole or not at all."""
    write_file(path, (json.dumps(values, indent=1) + "\n").encode())
