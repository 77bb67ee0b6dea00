"""Edits of a dataset folder as training samples: two images, the prompt in JoyAI's form, the red box drawn.

The folder is one of `spatialweave world --kind edits`, in either layout, or a user's own, whose
manifest.jsonl has a line for each edit:

    {"image": "a.png", "target_image": "b.png", "instruction": "Move the mug into the red box ...", ...}

    kind                 "move", "rotate", "camera", "remove" or "edit" (the default)
    prompt               what the model reads, verbatim; without it, one is written from the other entries
    object_name          the object, as "the red mug"; in the world's folders "object" and "objects" name it
    box                  [x, y, width, height] in pixels of the source: where the object of a move goes
    object_mask, target_object_mask   images, white where the object is, before and after
    view                 of a rotation, one of the eight of `prompts.VIEWS`
    parameters           degrees; or a camera's yaw_degrees, pitch_degrees (up), metres (closer)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.pictures import open_mask, open_rgb
from ...core.training.data import FolderDataset, fit_map
from ...core.training.data_files import check_name, read_segmentation
from ..boxes import box_from_sides, boxes_from_masks, draw_red_box
from ..buckets import Rect
from ..prompts import VIEWS, camera_change, move_prompt, rotate_prompt

KINDS = ("move", "rotate", "camera", "remove", "edit")
KEYS = ("image", "target_image", "segmentation", "target_segmentation")
FILE_KEYS = (*KEYS, "object_mask", "target_object_mask")  # entries of a line that name files
NO_VIEW = "a rotation without a view: JoyAI's prompt names the side that is shown"
NO_ZOOM = "a zoom of the lens: JoyAI's zoom moves the camera"


@dataclass(frozen=True)
class EditSample:
    """One edit."""

    source: Tensor  # uint8 (h, w, 3), as it was
    target: Tensor  # uint8 (h, w, 3)
    kind: str
    instruction: str  # as written by a person
    prompt: str  # what the model reads; "" where JoyAI has no form for it
    lacks: str = ""  # why there is no prompt
    box: Rect | None = None  # where the object goes, to be drawn into what the model sees
    masks: tuple[Tensor, Tensor] | None = None  # bool (h, w): the object before and after
    name: str = ""  # of the object, without article
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def with_box(self) -> Tensor:
        """The source as the model sees it."""
        if self.box is None:
            return self.source
        return (draw_red_box(self.source.float() / 255, self.box) * 255).round().to(torch.uint8)


def open_edit_folder(folder: str | Path) -> FolderDataset:
    """The folder's samples; ValueError if its lines are no edits."""
    dataset = FolderDataset(folder, keys=KEYS)
    for index in range(len(dataset)):
        entry = dataset.entry(index)
        for key in FILE_KEYS:
            if key in entry:
                check_name(entry[key], key, dataset.where(index))
        kind = entry.get("kind", "edit")
        if kind not in KINDS:
            raise ValueError(
                f"{dataset.where(index)}: Expected a kind of {', '.join(KINDS)}, got {kind!r}. Correct it."
            )
        if not isinstance(entry.get("instruction"), str) or not entry["instruction"].strip():
            raise ValueError(
                f"{dataset.where(index)}: Expected an instruction, got none. Add one to the line, or write "
                "the folder with: spatialweave world --kind edits"
            )
    return dataset


def read_edit(dataset: FolderDataset, index: int, size: tuple[int, int] | None = None) -> EditSample:
    """A sample, scaled to cover `size` (height, width) and cropped in the middle; ValueError names its line.
    """
    entry, raw = dataset.entry(index), dict(dataset[index])
    try:
        read_target(raw, entry, dataset.folder)
        masks = read_masks(raw, entry, dataset.folder)
        maps = {"image": raw["image"], "target_image": raw["target_image"]}
        shapes = {tuple(value.shape[:2]) for value in (*maps.values(), *(masks or ()))}
        if len(shapes) > 1:
            raise ValueError(f"Expected images and masks of one size, got {sorted(shapes)}. Resize them.")
        box = read_box(entry, masks, tuple(raw["image"].shape[:2]), size)
        if size:
            maps = {key: fit_map(value, size, smooth=True) for key, value in maps.items()}
            masks = masks and tuple(fit_map(mask, size, smooth=False) for mask in masks)
        prompt, lacks = write_prompt(entry, box is not None)
    except (ValueError, OSError) as error:
        raise ValueError(f"{dataset.where(index)}: {error}") from error
    return EditSample(
        maps["image"], maps["target_image"], entry.get("kind", "edit"), entry["instruction"], prompt, lacks,
        box if prompt and "red box" in prompt else None, masks, find_name(entry).removeprefix("the "),
        entry.get("parameters") or {},
    )  # fmt: skip


def read_target(raw: dict[str, Any], entry: Mapping[str, Any], folder: Path) -> None:
    """Add the images that a line of loose files names beside those that the dataset reads."""
    for key in ("image", "target_image"):
        if key not in raw and isinstance(entry.get(key), str):
            raw[key] = open_rgb(folder / entry[key])[0]
        if key not in raw:
            raise ValueError(f"Expected {key}, got none. Name it in the line")
    key = "target_segmentation"
    if key not in raw and isinstance(entry.get(key), str):
        raw[key] = read_segmentation(folder / entry[key])


def read_masks(
    raw: Mapping[str, Any], entry: Mapping[str, Any], folder: Path
) -> tuple[Tensor, Tensor] | None:
    """The edited object before and after, by its number in the segmentations or by files."""
    number = entry.get("object")
    if isinstance(number, int) and {"segmentation", "target_segmentation"} <= raw.keys():
        return raw["segmentation"] == number + 1, raw["target_segmentation"] == number + 1
    names = [entry.get(key) for key in ("object_mask", "target_object_mask")]
    if not all(isinstance(name, str) for name in names):
        return None
    return open_mask(folder / names[0]), open_mask(folder / names[1])


def read_box(
    entry: Mapping[str, Any], masks: Sequence[Tensor] | None, shape: tuple[int, int],
    size: tuple[int, int] | None,
) -> Rect | None:  # fmt: skip
    """The target box in pixels of the scaled image: that of the manifest line, or of the mask after."""
    box = entry.get("box")
    if box is not None:
        if not isinstance(box, list) or len(box) != 4 or not all(is_finite_number(side) for side in box):
            raise ValueError(f"Expected a box [x, y, width, height] in pixels, got {box!r}. Correct it")
        return scale_box(box_from_sides(*box), shape, size)
    if entry.get("kind") != "move" or masks is None:
        return None
    after = fit_map(masks[1], size, smooth=False) if size else masks[1]
    return boxes_from_masks(after[None].float(), *after.shape)[0]


def scale_box(box: Rect, shape: tuple[int, int], size: tuple[int, int] | None) -> Rect:
    """A box after `fit_map`."""
    if size is None:
        return box
    scale = max(size[0] / shape[0], size[1] / shape[1])
    top, left = ((max(new, round(old * scale)) - new) // 2 for old, new in zip(shape, size))
    x0, y0, x1, y1 = (side * scale for side in box)
    return x0 - left, y0 - top, x1 - left, y1 - top


def is_finite_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def find_name(entry: Mapping[str, Any]) -> str:
    """The name of the edited object with its article, or ""."""
    if isinstance(entry.get("object_name"), str):
        return entry["object_name"]
    names, number = entry.get("objects"), entry.get("object")
    is_named = isinstance(names, list) and isinstance(number, int) and 0 <= number < len(names)
    return f"the {names[number]}" if is_named else ""


def write_prompt(entry: Mapping[str, Any], has_box: bool) -> tuple[str, str]:
    """(the prompt, why there is none); one of both is "".
    """
    if isinstance(entry.get("prompt"), str) and entry["prompt"].strip():
        return entry["prompt"], ""
    kind, name = entry.get("kind", "edit"), find_name(entry)
    if kind == "move" and name and has_box:
        # a box of the world would be mistaken for the red box
        return move_prompt(name if "object_name" in entry else name.replace(" box", " block")), ""
    if kind == "rotate":
        is_shown = entry.get("view") in VIEWS and name
        return (rotate_prompt(name, entry["view"]), "") if is_shown else ("", NO_VIEW)
    if kind == "camera" and isinstance(entry.get("parameters"), Mapping):
        return camera_prompt(entry["parameters"])
    return entry["instruction"], ""


def camera_prompt(parameters: Mapping[str, Any]) -> tuple[str, str]:
    """The four lines for a motion of the camera; a change of the lens has none."""
    metres = parameters.get("metres", 0)
    if "factor" in parameters:
        return "", NO_ZOOM
    zoom = "in" if metres > 0 else "out" if metres < 0 else "unchanged"
    change = camera_change(parameters.get("yaw_degrees", 0.0), parameters.get("pitch_degrees", 0.0), zoom)
    return change.prompt(), ""
