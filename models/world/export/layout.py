"""The two layouts of a dataset folder: rendered frames to safetensors shards or to PNG files.

dataset.py describes the format.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ...core.export.files import write_file
from ...core.export.png16 import encode_png16, quantize
from ...core.geometry.normals import normals_to_image
from ..render import Frames

DEPTH_SCALE = 0.0005  # metres per unit of a 16-bit PNG: 0.5 mm, up to 32.7 m
SKY_LABEL = 255  # of an 8-bit segmentation map
_NUMBERS = ("intrinsics", "world_to_cam")

Parts = dict[str, Iterable[Frames]]  # prefix of the names ("" or "target_") -> batches of frames, in order


def write_shard_file(
    folder: Path, name: str, rows: range, parts: Parts, *, normals: bool, depth_type: torch.dtype
) -> list[dict[str, Any]]:
    """Write `name`.safetensors with all tensors of the frames; returns the shard and row of each sample."""
    tensors: dict[str, Tensor] = {}
    for prefix, batches in parts.items():
        packed = [pack_frames(frames, normals=normals, depth_type=depth_type) for frames in batches]
        tensors |= {prefix + key: torch.cat([part[key] for part in packed]) for key in packed[0]}
    path = write_file(folder / f"{name}.safetensors", save(tensors))
    return [{"shard": path.name, "row": i - rows.start} for i in rows]


def pack_frames(frames: Frames, *, normals: bool, depth_type: torch.dtype) -> dict[str, Tensor]:
    """Frames in the data types of a shard, each with the batch as its first axis."""
    packed = {
        "image": to_bytes(frames.image),
        "depth": frames.depth.to(depth_type),
        "segmentation": frames.segmentation.to(torch.int16),
        "line": frames.line.to(torch.uint8),
        **{key: getattr(frames, key) for key in _NUMBERS},
    }
    if normals:
        packed["normals"] = (frames.normals * 127).round().to(torch.int8)
    return packed


def write_pictures(
    folder: Path, name: str, rows: range, parts: Parts, *, normals: bool, depth_type: torch.dtype
) -> list[dict[str, Any]]:
    """Write a PNG per map and scene, in one folder per kind of map.

    Returns the paths, depth scale and camera of each sample. `depth_type` is ignored: PNG depth has 16 bits.
    """
    locations: list[dict[str, Any]] = [{"depth_scale": DEPTH_SCALE} for _ in rows]
    for prefix, batches in parts.items():
        done = 0
        for frames in batches:
            for i in range(len(frames)):
                location, one = locations[done], Frames(*(getattr(frames, f.name)[i] for f in fields(Frames)))
                for key, data in picture_files(one, normals=normals).items():
                    path = f"{prefix}{key}/{rows[done]:06d}.png"
                    write_file(folder / path, data)
                    location[prefix + key] = path
                location |= {prefix + key: getattr(one, key).tolist() for key in _NUMBERS}
                done += 1
    return locations


def picture_files(frame: Frames, *, normals: bool) -> dict[str, bytes]:
    """The maps of one scene as bytes of PNG files; `frame` has no batch axis."""
    values, _, _ = quantize(frame.depth, torch.isfinite(frame.depth), DEPTH_SCALE)
    files = {
        "image": encode_png(to_bytes(frame.image)),
        "depth": encode_png16(values),
        "segmentation": encode_png(
            torch.where(frame.segmentation < 0, SKY_LABEL, frame.segmentation).to(torch.uint8)
        ),
        "line": encode_png(to_bytes(frame.line)),
    }
    return files | ({"normals": encode_png(to_bytes(normals_to_image(frame.normals)))} if normals else {})


def encode_png(values: Tensor) -> bytes:
    """A uint8 tensor (h, w) or (h, w, 3) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(values.cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def to_bytes(values: Tensor) -> Tensor:
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)
