"""Two published layouts of edits: shards of SpatialEdit-500K (WebDataset) and folders of OBject-3DIT.

SpatialEdit-500K: TASK/worker0-{000000}.tar; of a sample KEY.json, KEY.0.jpg (source), KEY.1.jpg (target).
OBject-3DIT: TASK/train/UID/ or TASK/{val|test}/{seen|unseen}/UID/ with 1.png, 2.png, 1_mask.png, 2_mask.png,
metadata.json; a file at the root describes each object.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .edits import EditSample

# the release names object_moving; the other two are named after it
SPATIALEDIT_TASKS = {"move": "object_moving", "rotate": "object_rotation", "camera": "camera"}
THREEDIT_TASKS = {"move": "translate", "rotate": "rotate", "remove": "remove"}
DESCRIPTIONS = "objaverse_cat_descriptions_64k.json"  # where OBject-3DIT's reader finds descriptions
# colors of its masks, matplotlib's Set1: the reader takes the second for the object
BACKGROUND, OBJECT = (228, 26, 28, 255), (55, 126, 184, 255)


def spatialedit_task(kind: str) -> str:
    """The folder of a kind of edit."""
    return SPATIALEDIT_TASKS.get(kind, "edit")


def spatialedit_files(key: str, sample: EditSample, quality: int) -> dict[str, bytes]:
    """The three files of a sample, by their names in the tar."""
    record = {
        "conversations": conversation(sample.prompt),
        "conversations_human": conversation(sample.instruction),
        "metadata": {"instruction": sample.prompt, "instruction_human": sample.instruction, "id": key},
        "data_type": spatialedit_task(sample.kind),
    }
    return {
        f"{key}.json": json.dumps(record, ensure_ascii=False).encode(),
        f"{key}.0.jpg": encode_image(sample.with_box(), "JPEG", quality=quality, subsampling=0),
        f"{key}.1.jpg": encode_image(sample.target, "JPEG", quality=quality, subsampling=0),
    }


def conversation(text: str) -> list[dict[str, str]]:
    """One turn: source image and text, then the target image."""
    return [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "<image>"}]


def threedit_folder(kind: str, split: str, unseen: bool) -> str:
    """The folder of a kind of edit in a split."""
    task = THREEDIT_TASKS[kind]
    return f"{task}/train" if split == "train" else f"{task}/{split}/{'unseen' if unseen else 'seen'}"


def threedit_fault(sample: EditSample) -> str:
    """Why a sample cannot be stored in OBject-3DIT, or ""."""
    if sample.kind not in THREEDIT_TASKS:
        return f"a kind that is {sample.kind}: OBject-3DIT has move, rotate and remove"
    if sample.masks is None or not sample.masks[0].any():
        return "an object without masks"
    if sample.kind != "remove" and not sample.masks[1].any():
        return "an object that is not visible after the edit"
    if not sample.name:
        return "an object without a name"
    if sample.kind == "rotate" and "degrees" not in sample.parameters:
        return "a rotation without degrees"
    return ""


def threedit_files(sample: EditSample) -> dict[str, bytes]:
    """The five files of a sample, by their names in its folder."""
    category = sample.name.split()[-1]
    before, after = sample.masks
    metadata: dict[str, Any] = {"object_data": [{"uid": object_uid(sample.name), "category": category}]}
    if sample.kind == "rotate":
        metadata |= {"rotation_angle": sample.parameters["degrees"], "rotation_category": category}
    if sample.kind == "move":
        metadata |= {"end_location_2d": find_center(after), "translation_category": category}
    return {
        "1.png": encode_image(sample.source, "PNG"),
        "2.png": encode_image(sample.target, "PNG"),
        "1_mask.png": encode_mask(before),
        "2_mask.png": encode_mask(after),
        "metadata.json": json.dumps(metadata).encode(),
    }


def object_uid(name: str) -> str:
    """An object's id: its description, without blanks."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def find_center(mask: Tensor) -> list[float]:
    """The middle of a mask's bounding box as shares of width and height."""
    rows, columns = (mask.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    height, width = mask.shape
    return [
        float(columns[0] + columns[-1] + 1) / (2 * width),
        float(rows[0] + rows[-1] + 1) / (2 * height),
    ]


def encode_image(values: Tensor, form: str, **options: Any) -> bytes:
    """uint8 (h, w, 3) as a file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(values.cpu().numpy()).save(buffer, form, **options)
    return buffer.getvalue()


def encode_mask(mask: Tensor) -> bytes:
    """bool (h, w) as PNG in OBject-3DIT's colors."""
    from PIL import Image

    colors = np.array([BACKGROUND, OBJECT], dtype=np.uint8)[mask.cpu().numpy().astype(int)]
    buffer = io.BytesIO()
    Image.fromarray(colors, "RGBA").save(buffer, "PNG")
    return buffer.getvalue()


def pack_tar(files: Sequence[Mapping[str, bytes]]) -> bytes:
    """Samples as an uncompressed tar; equal samples give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in files:
            for name, data in sample.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o644
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
